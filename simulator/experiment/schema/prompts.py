"""`prompts:` of a scenario: where the captions come from."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, Tag, ValidationInfo, field_validator

from simulator.core.part import Part, folder_of, fork, items
from simulator.core.settings import refuse


class ScenePrompts(Part):
    """Captions drawn from the scene grammar that the embedded pair knows."""

    source: Literal["scenes"] = "scenes"
    count: int = Field(default=16, ge=1, le=1_000_000)
    seed: int = Field(default=0, ge=0, le=2**63 - 1)


class PromptList(Part):
    """Captions as they stand."""

    captions: Annotated[tuple[str, ...], BeforeValidator(items), Field(min_length=1, alias="list")]

    @field_validator("captions")
    @classmethod
    def _not_empty(cls, captions: tuple[str, ...]) -> tuple[str, ...]:
        for index, caption in enumerate(captions):
            if not caption.strip() or "\n" in caption:
                refuse("must be a caption on one line", index)
            if caption in captions[:index]:
                refuse("stands twice; a caption gives one image, however often it is asked for", index)
        return captions


class PromptFile(Part):
    """Captions in a text file, one a line; blank lines are skipped. Read when the scenario is loaded."""

    file: str


def _read_prompts(prompts: Any, info: ValidationInfo) -> Any:
    if not isinstance(prompts, PromptFile):
        return prompts
    path = folder_of(info) / prompts.file
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:
        refuse(f"cannot be read: {path}: {getattr(error, 'strerror', None) or error}", "file")
    captions = [line for line in lines if line]
    if not captions:
        refuse(f"holds no caption: {path}", "file")
    return PromptList.model_validate({"list": captions})


Prompts = Annotated[
    Annotated[ScenePrompts, Tag("<scenes>")]
    | Annotated[PromptList, Tag("<list>")]
    | Annotated[PromptFile, Tag("<file>")],
    fork({"list": "<list>", "captions": "<list>", "file": "<file>"}, "<scenes>"),
    AfterValidator(_read_prompts),
]
