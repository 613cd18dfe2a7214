from .api import CiarSimError as CiarSimError
from .api import Decision as Decision
from .api import Result as Result
from .api import capacity as capacity
from .api import compare as compare
from .api import open_run as open_run
from .api import recommend as recommend
from .api import regime as regime
from .api import run as run
from .api import sweep as sweep

__all__ = [
    "CiarSimError",
    "Decision",
    "Result",
    "capacity",
    "compare",
    "open_run",
    "recommend",
    "regime",
    "run",
    "sweep",
]
