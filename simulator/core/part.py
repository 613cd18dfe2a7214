"""The base class of every section of a scenario or training file, and the text of values in messages."""

from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Discriminator,
    GetCoreSchemaHandler,
    ValidationInfo,
    create_model,
    model_validator,
)
from pydantic_core import CoreSchema

from simulator.core.errors import reason
from simulator.core.settings import Settings, refuse
from simulator.core.yamlfile import did_you_mean

ModelT = TypeVar("ModelT", bound=BaseModel)


class Part(Settings):
    """A section (mapping) of a scenario or training file. The error for an unknown key suggests the nearest known one."""

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            known = _keys(cls)
            for key in data:
                if key not in known:
                    refuse(f"is not a known key{did_you_mean(key, known)}", key)
        return data


@cache
def _keys(section: type[BaseModel]) -> tuple[str, ...]:
    """Return the keys of a section. Cached, because every case of a sweep needs them."""
    return tuple(field.alias or name for name, field in section.model_fields.items())


def items(data: Any) -> Any:
    """Convert a YAML list to a tuple, for a tuple field; return other values unchanged."""
    return tuple(data) if isinstance(data, list) else data


class FromMapping:
    """Annotation of a field whose type is a plain dataclass: the file has a mapping of its fields, which is read like a `Part`.

    The dataclass may raise ValueError for values that contradict each other. Its defaults must be plain values, not factories.
    """

    def __get_pydantic_core_schema__(self, source: type[Any], handler: GetCoreSchemaHandler) -> CoreSchema:
        kinds = get_type_hints(source)
        rows: dict[str, Any] = {
            entry.name: (
                Annotated[kinds[entry.name], BeforeValidator(items)],
                ... if entry.default is MISSING else entry.default,
            )
            for entry in fields(source)
        }
        form = create_model(source.__name__, __base__=Part, **rows)

        def opened(value: Any) -> Any:
            return vars(value) if isinstance(value, source) else value

        return handler.generate_schema(
            Annotated[form, BeforeValidator(opened), AfterValidator(lambda part: source(**dict(part)))]
        )


def fork(tags: dict[str, str], default: str) -> Discriminator:
    """Return a discriminator that chooses the form of a mapping by the first key of `tags` that it contains.

    Args:
        tags: Tag of the form, by key. Tags are written in <>, which omits them from the places in messages.
        default: Tag of the form if the mapping contains none of the keys.
    """

    def choose(data: Any) -> str:
        held = data if isinstance(data, dict) else vars(data) if isinstance(data, BaseModel) else {}
        return next((tag for key, tag in tags.items() if key in held), default)

    return Discriminator(choose)


def mapping_or(other: str, mapping: str) -> Discriminator:
    """Return a discriminator that chooses the tag `mapping` for a mapping and `other` for any other value. Tags as in `fork`."""
    return Discriminator(lambda data: mapping if isinstance(data, dict | BaseModel) else other)


def filled_in(model: ModelT, **values: Any) -> ModelT:
    """Set fields of a frozen model during its validation, and return it."""
    for name, value in values.items():
        object.__setattr__(model, name, value)
    return model


def folder_of(info: ValidationInfo) -> Path:
    """Return the folder of the file that is being validated; the current folder if unknown."""
    return Path((info.context or {}).get("folder", "."))


def path_of(text: str, info: ValidationInfo, *at: str | int) -> Path:
    """Resolve a path relative to the folder of the file. Refuses a path that no file can have; it need not exist."""
    if not text:  # would be the folder itself
        refuse("must be a path, got '' (text)", *at)
    try:
        path = (folder_of(info) / text).resolve()
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a symlink loop
        refuse(f"is not a usable path, got {found_text(text)}: {reason(error)}", *at)
    return path


def written(value: Any) -> str:
    """Return a value as it is written in YAML."""
    if isinstance(value, bool) or value is None:
        return "null" if value is None else str(value).lower()
    if isinstance(value, float):
        return repr(value).replace("inf", ".inf").replace("nan", ".nan")
    return str(value)


def found_text(value: Any) -> str:
    """Return a value as text for a message, with its type where the text alone does not show it."""
    if isinstance(value, str):
        return f"{value[:60]!r}" + ("..." if len(value) > 60 else "") + " (text)"
    if isinstance(value, dict | list | tuple):
        return ("an empty " if not value else "a ") + ("mapping" if isinstance(value, dict) else "list")
    return "nothing" if value is None else written(value)
