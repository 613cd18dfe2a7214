"""ciar-sim: latency and quality of edge-cloud image generation.

The names of `__init__.pyi` are the public surface of the simulator for use from Python, each imported at its first use;
everything else may change.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
