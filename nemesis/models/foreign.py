"""Weights that the authors of a method publish: unwrapped, matched by name and shape, counted, refused when too little fits."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nemesis.errors import Fault, NemesisError
from nemesis.method import Matched
from nemesis.models.untrusted import read_tensors

# what published files keep their weights under, the first that is there; one without is the dictionary of weights itself
CONTAINERS = ("state_dict", "network_weights", "net", "student", "raw")
# what wrappers put before a name: DataParallel, the module that holds the encoder beside its heads, the learner of a teacher
PREFIXES = ("module.", "backbone.", "student.")
ENOUGH = 0.95  # of the encoder's parameters, by count: below, a row would show random weights under a published name
REMEDY = "Give the file as its authors publish it, and the settings (size, backbone) that it was trained with."


def read_published(path: Path) -> dict[str, Tensor]:
    """The weights in a published file, by their names without containers and wrappers' prefixes.

    ``swin_vit``, as MONAI once called it, is ``swinViT``. What stands beside the weights (optimiser, epoch) is left out.

    Raises:
        NemesisError: no such file, damaged or truncated, carrying code, without weights, or naming one weight twice.
    """
    content = read_tensors(path, REMEDY)
    for _ in CONTAINERS:  # one in another, but not for ever: a file can hold itself
        if isinstance(content, Mapping):
            content = next((content[c] for c in CONTAINERS if isinstance(content.get(c), Mapping)), content)
    if not isinstance(content, Mapping):
        raise _refusal(path, f"holds no weights by name, but a {type(content).__name__}")
    state: dict[str, Tensor] = {}
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            continue
        name = _unwrapped(key)
        if name in state:
            raise _refusal(path, f"holds two weights that are called '{name}' once wrappers' prefixes are off")
        state[name] = value
    if not state:
        raise _refusal(path, f"holds no weights, only: {', '.join(map(str, list(content)[:8])) or 'nothing'}")
    return state


def load_published(
    network: nn.Module, path: Path, rename: Callable[[str], str | None], encoder: Sequence[str]
) -> Matched:  # fmt: skip
    """Load a published file into ``network``: :func:`read_published`, then :func:`adopt`."""
    return adopt(network, read_published(path), path, rename, encoder)


def adopt(
    network: nn.Module, state: Mapping[str, Tensor], path: Path, rename: Callable[[str], str | None], encoder: Sequence[str]
) -> Matched:  # fmt: skip
    """Copy the weights of a published file into ``network``, those that match by name and shape, and print which share did.

    Args:
        network: keeps its own values where the file has none; untouched if the file is refused.
        state: of :func:`read_published`.
        path: of the file, for messages.
        rename: the file's name of a weight → the network's, or None where it is left out on purpose.
        encoder: glob patterns of the network's own names that make up its encoder.

    Raises:
        NemesisError: two weights are given one name, values are not finite, under 95 % of the encoder's parameters (by count) are
            found, or one of its running statistics is not, without which its weights say something else, or over 5 % of the
            parameters of the file's encoder have no place in the network's.
        ValueError: no parameter of the network matches ``encoder``.
    """
    own = network.state_dict()
    skipped, unknown, misshapen, found = [], [], [], {}
    homeless = 0.0  # of the file's numbers: in its encoder by name, and without a place in this one
    for key, value in state.items():
        name = rename(key)
        if name is None:
            skipped.append(key)
        elif name not in own:
            unknown.append(key)
            homeless += value.numel() * _matches(name, encoder)
        elif not _fits(value, own[name]):
            misshapen.append(f"{name} ({_form(value)}, here {_form(own[name])})")
        elif name in found:
            raise _refusal(path, f"holds two weights for '{name}', the second of them '{key}'")
        else:
            found[name] = value
    if broken := next((name for name, value in found.items() if not value.isfinite().all()), None):
        raise _refusal(path, f"holds values that are not finite, in '{broken}'")
    counts = {name: p.numel() for name, p in network.named_parameters() if _matches(name, encoder)}
    if not counts:
        raise ValueError(f"no parameter of the network matches {', '.join(encoder)}")
    total = sum(counts.values())
    share = sum(n for name, n in counts.items() if name in found) / total
    statistics = [
        name for name, b in network.named_buffers() if name in own and b.is_floating_point() and _matches(name, encoder)
    ]
    missing = [name for name in (*counts, *statistics) if name not in found]
    if share < ENOUGH or any(name not in found for name in statistics):
        what = f"holds {_percent(share)} of the encoder's parameters (at least {ENOUGH:.0%} are needed)"
        lists = {"missing": missing, "of another shape or type": misshapen, "not of this network": unknown}
        said = "; ".join(f"{words}: {_first(names)}" for words, names in lists.items() if names)
        raise _refusal(path, f"{what}; {said}")
    if homeless > (1 - ENOUGH) * (total + homeless):  # such as ResNet-101 in ResNet-50: what is taken was never used alone
        what = (
            f"is of a larger encoder: {_percent(homeless / (total + homeless))} of its parameters have no place in this network"
        )
        raise _refusal(path, f"{what}: {_first(unknown)}")
    with torch.no_grad():
        for name, value in found.items():
            own[name].copy_(value)  # the state shares its memory with the network
    said = f"{path.name}: {_percent(share)} of the encoder's parameters matched, {len(found)} of {len(state)} tensors taken"
    lists = {
        "left out on purpose": skipped,
        "without a place here": unknown,
        "of another shape or type": misshapen,
        "kept random": [name for name, value in own.items() if value.is_floating_point() and name not in found],
    }
    said += "".join(f"; {words}: {_first(names)}" for words, names in lists.items() if names)
    print(said, file=sys.stderr, flush=True)
    return Matched(share, tuple(skipped))


def _unwrapped(key: str) -> str:
    while prefix := next((p for p in PREFIXES if key.startswith(p)), None):
        key = key[len(prefix) :]
    return key.replace("swin_vit", "swinViT")


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _fits(value: Tensor, place: Tensor) -> bool:
    """Whether its numbers can be taken as they are: quantised, complex, sparse ones and those that were not saved cannot."""
    plain = value.layout == torch.strided and not value.is_meta and not value.is_complex()
    return plain and value.shape == place.shape and value.is_floating_point() == place.is_floating_point()


def _form(tensor: Tensor) -> str:
    usual = (torch.float32, torch.strided, torch.device("cpu"))
    odd = [str(word).removeprefix("torch.") for word in (tensor.dtype, tensor.layout, tensor.device) if word not in usual]
    return " ".join(["×".join(map(str, tensor.shape)) or "one number", *odd])


def _percent(share: float) -> str:
    return f"{int(1000 * share) / 10} %"  # rounded down: 94.99 % is not 95


def _first(names: Sequence[Any], n: int = 4) -> str:
    rest = f" and {len(names) - n} more" if len(names) > n else ""
    return ", ".join(map(str, names[:n])) + rest


def _refusal(path: Path, what: str) -> NemesisError:
    return NemesisError(Fault(str(path), what, REMEDY))
