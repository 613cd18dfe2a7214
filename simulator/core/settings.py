"""Frozen settings that refuse unknown keys, and the refusal of a value during validation."""

from typing import NoReturn

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError


def refuse(message: str, *at: str | int) -> NoReturn:
    """Refuse the value being validated, or the part of it at `at`, with this message."""
    raise PydanticCustomError("refused", "{message}", {"message": message, "at": at})


class Settings(BaseModel):
    """A frozen model: unknown keys refused, no silent conversion, no NaN or infinity unless allowed."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
