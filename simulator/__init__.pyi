from .core.errors import CiarSimError as CiarSimError
from .engine.case import CaseInputs as CaseInputs
from .engine.run import simulate as simulate
from .experiment.loading import load_scenario as load_scenario
from .experiment.run import run_scenario as run_scenario
from .experiment.scenario import Scenario as Scenario
from .experiment.sweep import expand as expand
from .network.access import Network as Network
from .network.link import Link as Link
from .pricing.program import compile_session as compile_session
from .protocol.cache import CachedSource as CachedSource
from .protocol.cache import RecordingCache as RecordingCache
from .protocol.methods import Decoding as Decoding
from .protocol.recording import Recording as Recording
from .protocol.recording import SessionSpec as SessionSpec

__all__ = [
    "CachedSource",
    "CaseInputs",
    "CiarSimError",
    "Decoding",
    "Link",
    "Network",
    "Recording",
    "RecordingCache",
    "Scenario",
    "SessionSpec",
    "compile_session",
    "expand",
    "load_scenario",
    "run_scenario",
    "simulate",
]
