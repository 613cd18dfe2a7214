"""ciar-sim: latency and quality of edge-cloud image generation.

The names below are the public surface of the simulator for use from Python; everything else may change.
"""

from importlib import import_module
from typing import Any

_WHERE = {
    "CachedSource": "simulator.recording",
    "CaseInputs": "simulator.engine",
    "CiarSimError": "simulator.errors",
    "Decoding": "simulator.methods",
    "Link": "simulator.link",
    "Network": "simulator.engine",
    "Recording": "simulator.recording",
    "RecordingCache": "simulator.recording",
    "Scenario": "simulator.scenario",
    "SessionSpec": "simulator.recording",
    "compile_session": "simulator.replay",
    "expand": "simulator.scenario",
    "load_scenario": "simulator.scenario",
    "run_scenario": "simulator.run",
    "simulate": "simulator.engine",
}

__all__ = sorted(_WHERE)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Imported at first use, so that `ciar-sim --help` stays quick."""
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
