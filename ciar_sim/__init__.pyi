from .api import CiarSimError as CiarSimError
from .api import Result as Result
from .api import run as run
from .api import sweep as sweep

__all__ = ["CiarSimError", "Result", "run", "sweep"]
