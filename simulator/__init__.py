"""ciar-sim: latency and quality of edge-cloud image generation.

The names below are the public surface of the simulator for use from Python; everything else may change.
"""

from importlib import import_module
from typing import Any

_WHERE = {
    "CachedSource": "simulator.protocol.cache",
    "CaseInputs": "simulator.engine.case",
    "CiarSimError": "simulator.core.errors",
    "Decoding": "simulator.protocol.methods",
    "Link": "simulator.network.link",
    "Network": "simulator.network.access",
    "Recording": "simulator.protocol.recording",
    "RecordingCache": "simulator.protocol.cache",
    "Scenario": "simulator.experiment.scenario",
    "SessionSpec": "simulator.protocol.recording",
    "compile_session": "simulator.pricing.program",
    "expand": "simulator.experiment.sweep",
    "load_scenario": "simulator.experiment.loading",
    "run_scenario": "simulator.experiment.run",
    "simulate": "simulator.engine.run",
}

__all__ = sorted(_WHERE)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Imported at first use, so that `ciar-sim --help` stays quick."""
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
