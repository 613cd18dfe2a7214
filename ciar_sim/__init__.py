"""Latency and quality of edge-cloud image generation: `run`, `sweep` and decide from Python.

The names are those of `__init__.pyi`. Each is imported at its first use, so that `ciar-sim --help` is fast.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
