"""Any registered method, small enough for a test."""

from __future__ import annotations

from typing import Any

from nemesis.errors import NemesisError
from nemesis.method import Method, create, methods

SMALL = {
    "patch": 4, "embed_dim": 64, "depth": 1, "decoder_depth": 1, "decoder_dim": 32, "heads": 4, "decoder_heads": 4,
    "channels": (4, 8),
}  # fmt: skip


def small_method(name: str) -> Method[Any]:
    """The method at about the smallest size it accepts; one that means something else by these keys at its own defaults."""
    cls = methods()[name]
    settings = {key: value for key, value in SMALL.items() if key in cls.settings_type.model_fields}
    edge = max(16, cls.card.smallest_input)
    try:
        return create(name, settings, edge)
    except NemesisError:
        return create(name, {}, edge)
