"""What the checks of :mod:`nemesis.contract` are made of: promises, and a method at the ``small`` settings of its card."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nemesis.errors import Fault, NemesisError
from nemesis.method import Batch, Method, create, find

if TYPE_CHECKING:
    from torch import Tensor, nn

SMALLEST_EDGE = 16  # voxels; of a superpatch that is checked, where the method accepts it
CLASSES = ("first", "second")  # that a method learns which uses labels and names none


class BrokenPromiseError(AssertionError):
    """A method does not do what the contract says; the text says what, and what to do."""


Check = Callable[[Method[Any]], None]
CHECKS: dict[str, Check] = {}


def check(function: Check) -> Check:
    """Decorator: a check, known by its name."""
    CHECKS[function.__name__] = function
    return function


def promise(kept: object, otherwise: str) -> None:
    """Raise BrokenPromiseError with these words unless the promise is kept."""
    if not kept:
        raise BrokenPromiseError(otherwise)


def small_method(name: str) -> Method[Any]:
    """A method as it is checked: its card's ``small`` settings, at the smallest superpatch from 16 that it accepts.

    Raises:
        NemesisError: there is no such method, or its small settings do not fit that superpatch.
    """
    cls = find(name, "check-method")
    settings = dict(cls.card.small)
    if cls.card.uses_labels:
        if "classes" not in cls.settings_type.model_fields:
            what = "the card says 'uses_labels', but the settings have no key `classes`, which planning fills with organs"
            raise NemesisError(Fault(cls.__module__, what, "Add `classes: tuple[str, ...] = key((), ...)` to the settings."))
        settings.setdefault("classes", CLASSES)
    return create(name, settings, max(SMALLEST_EDGE, cls.card.smallest_input), f"{cls.__module__}: `small` of its card")


def built(method: Method[Any], seed: int = 0) -> nn.Module:
    """The method's network from this seed."""
    import torch

    torch.manual_seed(seed)
    return method.build()


def superpatches_of(method: Method[Any], n: int) -> Tensor:
    """Random superpatches (n, 1, D, H, W) in [0, 1], always the same."""
    import torch

    return torch.rand(n, 1, *(method.superpatch,) * 3, generator=torch.Generator().manual_seed(7))


def batch_of(method: Method[Any], n: int = 2, step: int = 0) -> Batch:
    """What a step of the pretext gets, of random voxels; labels can be seen in these."""
    import torch

    from nemesis.models.keyed import Keys

    voxels = torch.rand(n, 1, *method.draw().size, generator=torch.Generator().manual_seed(7))
    keys = Keys.at(0, step, range(n))
    if not method.card.uses_labels:
        return Batch(voxels, keys)
    count = len(method.settings.classes)
    classes = (voxels * (count + 1)).clamp_max(count).to(torch.uint8)
    return Batch(voxels, keys, classes, torch.ones(n, count, dtype=torch.bool))
