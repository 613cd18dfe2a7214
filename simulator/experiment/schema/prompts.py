"""`prompts:` of a scenario: where the captions come from."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, Tag, ValidationInfo, field_validator

from simulator.core.errors import PromptError, reason
from simulator.core.files import read_file, shown
from simulator.core.part import Part, fork, items, path_of
from simulator.core.prompt_files import MOST_BYTES, NEWLINE, is_blank, read_prompts
from simulator.core.settings import refuse


class ScenePrompts(Part):
    """Captions of the pair's subject, drawn with their own seed: from the scene grammar, or of held-out photographs.

    Attributes:
        count: Number of captions.
        seed: Which captions are drawn.
    """

    source: Literal["scenes", "photos"] = Field(
        default="scenes", description="the pair's subject, which is the default"
    )
    count: int = Field(default=16, ge=1, le=1_000_000)
    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    skip: int = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="number of the seed's captions to skip first: those that settings were chosen on",
    )


class PromptList(Part):
    """Captions as they are.

    Attributes:
        captions: `list` in the file: the captions, each on one line.
    """

    captions: Annotated[tuple[str, ...], BeforeValidator(items), Field(min_length=1, alias="list")]
    calibration: Annotated[tuple[str, ...], BeforeValidator(items)] = Field(
        default=(),
        description="captions for the calibration of a threshold given as a rate of cloud calls, in addition to those of the list; by "
        "default the pair draws them; a published model with captions cannot draw any",
    )

    @field_validator("captions", "calibration")
    @classmethod
    def _one_line_each(cls, captions: tuple[str, ...]) -> tuple[str, ...]:
        for index, caption in enumerate(captions):
            if is_blank(caption) or NEWLINE.search(caption):
                refuse("must be a caption on one line", index)
        return captions


class PromptFile(Part):
    """Captions in a file of any form of `simulator.core.prompt_files`. Read when the scenario is loaded.

    Attributes:
        file: The file.
    """

    file: str
    count: int | None = Field(
        default=None, ge=1, le=1_000_000, description="number of captions, the first of the file; by default all"
    )
    skip: int = Field(default=0, ge=0, le=1_000_000, description="number of captions of the file to skip first")
    calibration: int = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="number of captions after those of count that are used for calibration, as in a list",
    )


def _read_prompts(prompts: Any, info: ValidationInfo) -> Any:
    """Read the captions of a file as a list. Their places in the file are stored in `caption_places` of the context, for later errors."""
    if not isinstance(prompts, PromptFile):
        return prompts
    path = path_of(prompts.file, info, "file")
    name = shown(path)
    try:
        found = read_prompts(read_file(path, MOST_BYTES))
    except OSError as error:
        refuse(f"cannot be read: {path}: {reason(error)}", "file")
    except PromptError as error:
        where = f"{name}:{error}" if str(error)[0].isdigit() else f"{name} {error}"
        refuse(f"is not a list of captions: {where}", "file")
    if prompts.skip >= len(found):
        refuse(f"must be < {len(found)}, the captions of {name}, got {prompts.skip}", "skip")
    found = found[prompts.skip :]
    if prompts.count is not None and prompts.count > len(found):
        after = f" after {prompts.skip}" if prompts.skip else ""
        refuse(f"must be <= {len(found)}, the captions of {name}{after}, got {prompts.count}", "count")
    found, others = found[: prompts.count], found[prompts.count or len(found) :]
    if prompts.calibration > len(others):
        refuse(
            f"must be <= {len(others)}, the captions of {name} after count, got {prompts.calibration}", "calibration"
        )
    places = (info.context or {}).setdefault("caption_places", {})
    given = {"list": found, "calibration": others[: prompts.calibration]}
    for key, captions in given.items():
        places.update({("prompts", key, index): one.within(name) for index, one in enumerate(captions)})
    texts = {key: [one.text for one in captions] for key, captions in given.items() if captions}
    return PromptList.model_validate(texts)


Prompts = Annotated[
    Annotated[ScenePrompts, Tag("<scenes>")]
    | Annotated[PromptList, Tag("<list>")]
    | Annotated[PromptFile, Tag("<file>")],
    fork({"list": "<list>", "captions": "<list>", "file": "<file>"}, "<scenes>"),
    AfterValidator(_read_prompts),
]
