"""Cached readings of images: `.npy` files of the judge's dtype. This module does not import torch."""

import io
from pathlib import Path

import numpy as np

from simulator.core.errors import RecordingError, reason
from simulator.core.files import write_atomically


def load_readings(path: Path, dtype: np.dtype, count: int) -> np.ndarray | None:
    """Load readings [count]; return None if the file is missing or damaged, and remove a damaged file. Raises RecordingError."""
    try:
        found: np.ndarray = np.lib.format.read_array(io.BytesIO(path.read_bytes()), allow_pickle=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RecordingError(f"cannot read the quality cache {path.parent}: {reason(error)}") from None
    except (ValueError, EOFError, MemoryError):
        path.unlink(missing_ok=True)
        return None
    if found.dtype != dtype or found.shape != (count,):
        path.unlink(missing_ok=True)
        return None
    return found


def save_readings(path: Path, readings: np.ndarray) -> None:
    """Write readings. Raises RecordingError if the file cannot be written."""
    buffer = io.BytesIO()
    np.save(buffer, readings)
    try:
        write_atomically(path, buffer.getvalue())
    except OSError as error:
        raise RecordingError(f"cannot write the quality cache {path.parent}: {reason(error)}") from None
