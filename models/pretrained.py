"""Models that the transformers library loads from a local folder in its own layout: a T5 for captions, CLIP for metrics.

The library fills missing weights with random numbers, and a tokenizer without its files has an empty vocabulary; neither stops it. Here
both are errors.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from models.checkpoint import SUFFIXES, few, read_checkpoint
from models.state import refuse_nonfinite_model
from simulator.core.errors import WeightsError, first_line

TOKENIZERS = ("tokenizer.json", "spiece.model", "tokenizer.model", "vocab.json", "vocab.txt")


def load_pretrained(kind: Any, folder: Path, wrong: str, **settings: Any) -> Any:
    """Load a model from its folder, in `eval()` mode and without gradients. Nothing is downloaded or printed.

    Args:
        kind: Its class in transformers.
        folder: Folder with `config.json` and weights.
        wrong: Beginning of the error message; the reason follows.
        settings: Arguments of the class's `from_pretrained`.

    Raises:
        WeightsError: The folder is damaged or holds another model; weights are missing or not finite.
    """
    try:
        with _silent():
            model, report = kind.from_pretrained(
                str(folder), local_files_only=True, output_loading_info=True, ignore_mismatched_sizes=True, **settings
            )
    except Exception as error:  # the library raises many types for a damaged folder
        for path in sorted(path for path in folder.glob("*") if path.suffix in SUFFIXES):
            read_checkpoint(path)  # raises a clearer error if a weight file is not readable
        raise WeightsError(f"{folder}: {wrong}: {first_line(error)[:200]}") from error
    # Depending on the library's version, entries are names or tuples of name and shapes.
    misshapen = [one if isinstance(one, str) else one[0] for one in report["mismatched_keys"]]
    missing = sorted(set(report["missing_keys"]) - set(misshapen))
    shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
    wanted = [f"{key}, needed {shapes.get(key)}" for key in sorted(misshapen)]
    listed = [f"{what}: {few(keys)}" for what, keys in (("missing", missing), ("of another shape", wanted)) if keys]
    if listed:
        raise WeightsError(f"{folder}: {wrong}: its weights do not fit its config.json; {'; '.join(listed)}")
    _refuse_whole_numbers(model, folder, wrong)
    refuse_nonfinite_model(model, folder)
    return model.eval().requires_grad_(False)


def _refuse_whole_numbers(model: Any, folder: Path, wrong: str) -> None:
    """Raise WeightsError for floating-point weights that the files hold as whole numbers, which the library converts."""
    floats = {key for key, value in model.state_dict().items() if value.is_floating_point()}
    files = [path for path in sorted(folder.glob("*")) if path.suffix in SUFFIXES]
    safe = [path for path in files if path.suffix == ".safetensors"]  # which the library prefers
    for path in safe or files:
        tensors = read_checkpoint(path).tensors
        whole = [f"{key} {one.dtype}" for key, one in tensors.items() if key in floats and "float" not in one.dtype]
        if whole:
            raise WeightsError(f"{path}: {wrong}: {few(whole)}; needed floating-point weights")


def load_tokenizer(kind: Any, folder: Path, wrong: str, vocabulary: int) -> Any:
    """Load the tokenizer of a model in transformers' layout.

    Args:
        kind: Its class in transformers.
        folder: Folder with its files.
        wrong: As in `load_pretrained`.
        vocabulary: Size of the model's embedding table; the tokenizer must have between half as many and as many tokens.

    Raises:
        WeightsError: The files are missing or damaged, or belong to another model.
    """
    try:
        with _silent():
            found = kind.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # as above
        if not any((folder / name).is_file() for name in TOKENIZERS):
            raise WeightsError(
                f"{folder}: {wrong}: its tokenizer is missing; needed one of {', '.join(TOKENIZERS)}"
            ) from error
        raise WeightsError(f"{folder}: {wrong}: its tokenizer: {first_line(error)[:200]}") from error
    if not vocabulary <= 2 * len(found) <= 2 * vocabulary:
        raise WeightsError(
            f"{folder}: {wrong}: its tokenizer has {len(found)} tokens, the model {vocabulary}: "
            "files of the tokenizer are missing or belong to another model"
        )
    return found


@contextmanager
def _silent() -> Iterator[None]:
    """Silence the library's progress bars and loading reports."""
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
