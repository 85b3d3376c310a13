"""Weights on disk: safetensors, written atomically, loaded strictly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import nn

from nemesis.errors import Fault, NemesisError
from nemesis.files import write_bytes


def save_weights(network: nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
    """Write every parameter and persistent buffer of ``network``; the same weights give the same bytes."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(network.state_dict().items())}
    write_bytes(path, save(tensors, metadata={"nemesis": json.dumps(dict(metadata), sort_keys=True)}))


def load_weights(network: nn.Module, path: Path) -> None:
    """Load a file of :func:`save_weights` into ``network``, name by name and shape by shape.

    Raises:
        NemesisError: the file is missing, damaged, or belongs to another network.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    except (OSError, SafetensorError) as error:
        raise NemesisError(
            Fault(str(path), f"is not a readable safetensors checkpoint ({error})", "Delete it and run again")
        ) from None
    own = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    if own != shapes:
        differing = sorted(name for name in names | set(own) if own.get(name) != shapes.get(name))
        matched = sum(own.get(name) == shapes[name] for name in names) / max(len(own), 1)
        what = f"belongs to another network: {matched:.0%} of the tensors match, '{differing[0]}' is the first that does not"
        raise NemesisError(Fault(str(path), what, "Use the configuration it was trained with (run.json beside it)"))
    network.load_state_dict(load_file(path))
