"""Arrays that training prepares once and keeps in files: tokens, renders, decoded images."""

from pathlib import Path
from typing import IO, Any

import numpy as np

from simulator.core.errors import DataError
from simulator.core.files import write_atomically


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an array to a `.npy` file, whole or not at all."""
    whole = np.ascontiguousarray(array)

    def write(file: IO[bytes]) -> None:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(whole))
        file.write(whole.data)  # numpy's own way into a file does not say why it failed

    write_atomically(path, write)


def load_array(path: Path, dtype: Any, shape: tuple[int | None, ...], mapped: bool = False) -> np.ndarray:
    """The array of a `.npy` file.

    Args:
        path: the file.
        dtype: numpy type that it must have.
        shape: sizes that it must have; None where any size will do.
        mapped: read-only from the file as it is used, and not into memory.

    Raises:
        DataError: the file cannot be read, or holds an array of another type or shape.
    """
    try:  # mapped first: a header that promises more than the file holds then allocates nothing
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
