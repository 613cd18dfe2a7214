"""Frozen settings that refuse unknown keys, and how a value is refused."""

from typing import NoReturn

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError


def refuse(message: str, *at: str | int) -> NoReturn:
    """Refuse the value being validated, or the part of it at `at`."""
    raise PydanticCustomError("refused", "{message}", {"message": message, "at": at})


class Settings(BaseModel):
    """A frozen model: unknown keys refused, no silent conversion, no NaN or infinity unless allowed."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
