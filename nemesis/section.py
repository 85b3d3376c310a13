"""What every part of the configuration is made of: sections of keys, each with a unit and a description."""

from __future__ import annotations

import copy
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


def key(default: Any, description: str, unit: str = "–", **constraints: Any) -> Any:
    """A field with its unit and description; ``...`` as default makes it required."""
    if isinstance(default, (list, dict)):
        constraints["default_factory"] = lambda: copy.deepcopy(default)
    else:
        constraints["default"] = default
    return Field(description=description, json_schema_extra={"unit": unit}, **constraints)


Positive = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """Base of every part of the configuration: unknown keys and infinite numbers are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
