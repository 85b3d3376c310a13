"""What every part of the configuration is made of: sections of keys, each with a unit and a description."""

from __future__ import annotations

import copy
from collections.abc import Hashable
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

H = TypeVar("H", bound=Hashable)


def key(default: Any, description: str, unit: str = "–", **constraints: Any) -> Any:
    """A field with its unit and description; ``...`` as default makes it required."""
    if isinstance(default, (list, dict)):
        constraints["default_factory"] = lambda: copy.deepcopy(default)
    else:
        constraints["default"] = default
    return Field(description=description, json_schema_extra={"unit": unit}, **constraints)


def _different(values: list[H]) -> list[H]:
    if twice := [value for place, value in enumerate(values) if value in values[:place]]:
        raise ValueError(f"{twice[0]!r} stands twice")
    return values


Different = AfterValidator(_different)
Positive = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """Base of every part of the configuration: unknown keys and infinite numbers are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
