"""Cached arrays of training: tokens, renders, prepared photographs."""

from pathlib import Path
from typing import IO, Any

import numpy as np

from simulator.core.errors import DataError
from simulator.core.files import write_atomically


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an array to a `.npy` file atomically."""
    whole = np.ascontiguousarray(array)

    def write(file: IO[bytes]) -> None:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(whole))
        file.write(whole.data)  # np.save hides the reason of a failed write

    write_atomically(path, write)


def load_array(path: Path, dtype: Any, shape: tuple[int | None, ...], mapped: bool = False) -> np.ndarray:
    """Load an array from a `.npy` file.

    Args:
        path: the file.
        dtype: required numpy type.
        shape: required sizes; None allows any size.
        mapped: return a read-only memory map instead of an array in memory.

    Raises:
        DataError: the file cannot be read, or holds an array of another type or shape.
    """
    try:  # mapped first: a damaged header with a huge shape then allocates nothing
        array: np.ndarray = np.lib.format.open_memmap(path, mode="r")
        found = f"{array.dtype} {list(array.shape)}"
    except Exception as error:  # a damaged header can raise anything
        raise DataError(f"{path}: damaged; delete it, and it is made again") from error
    fits = len(shape) == array.ndim and all(
        size in (None, there) for size, there in zip(shape, array.shape, strict=True)
    )
    if array.dtype != np.dtype(dtype) or not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise DataError(f"{path}: holds {found}, needed {np.dtype(dtype)} [{wanted}]; delete it, and it is made again")
    return array if mapped else np.array(array)
