"""Weights on disk: safetensors, written atomically, loaded strictly."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import nn

from nemesis.config import Preparation
from nemesis.errors import Fault, NemesisError
from nemesis.files import write_bytes, write_text
from nemesis.models.architecture import Architecture
from nemesis.models.masking import Masking

if TYPE_CHECKING:
    from nemesis.models.mae import MAEgic3DMAE

CARD_FORMAT = "nemesis-1"
PRETRAINED = ["model.safetensors", "card.json"]


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
        what = f"is not a readable safetensors checkpoint ({_line(error)})"
        raise NemesisError(Fault(str(path), what, "Train, export or download it again.")) from None
    own = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    if own != shapes:
        differing = sorted(name for name in names | set(own) if own.get(name) != shapes.get(name))
        matched = sum(own.get(name) == shapes[name] for name in names) / max(len(own), 1)
        share = f"{int(100 * matched)} % of the tensors match"
        what = f"belongs to another network: {share}, '{differing[0]}' is the first that does not"
        raise NemesisError(Fault(str(path), what, "Use the configuration it was trained with (run.json beside it)"))
    network.load_state_dict(load_file(path))


def save_pretrained(model: MAEgic3DMAE, folder: Path, about: Mapping[str, Any]) -> None:
    """Write ``model.safetensors`` and ``card.json``: architecture, masking, preparation, and what ``about`` says."""
    card = {
        "format": CARD_FORMAT,
        "nemesis": version("nemesis-benchmark"),
        "architecture": asdict(model.architecture),
        "masking": asdict(model.encoder.masking),
        "preparation": model.preparation.model_dump(mode="json"),
        "about": dict(about),
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(model, folder / "model.safetensors", {"format": CARD_FORMAT})
    write_text(folder / "card.json", json.dumps(card, indent=1, ensure_ascii=False) + "\n")


def from_pretrained(name: Path | str, revision: str | None = None) -> MAEgic3DMAE:
    """The network of a folder of :func:`save_pretrained`, or of a repository (``owner/name``) of the Hugging Face Hub.

    Raises:
        NemesisError: neither is there, or its card or weights are damaged.
    """
    from nemesis.models.mae import MAEgic3DMAE

    folder = Path(name)
    if not folder.is_dir():
        hub = _hub(str(name))
        try:
            folder = Path(hub.snapshot_download(str(name), revision=revision, allow_patterns=PRETRAINED))
        except (OSError, ValueError) as error:  # what the hub's client raises derives from these
            what = f"is neither a folder nor to be had from the Hugging Face Hub ({str(error).splitlines()[0]})"
            raise NemesisError(Fault(str(name), what, "Give a folder that save_pretrained wrote, or owner/name.")) from None
    path = folder / "card.json"
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
        if card["format"] != CARD_FORMAT:
            raise ValueError(f"its format is {card['format']!r}")
        model = MAEgic3DMAE.of(_complete(Architecture, card["architecture"]), _complete(Masking, card["masking"]))
        model.preparation = Preparation.model_validate(card["preparation"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        remedy = "Give a folder that save_pretrained wrote."
        raise NemesisError(Fault(str(path), f"is no card of a NEMESIS network ({_line(error)})", remedy)) from None
    load_weights(model, folder / "model.safetensors")
    return model.eval()


D = TypeVar("D", Architecture, Masking)


def _complete(kind: type[D], values: Mapping[str, Any]) -> D:
    """A dataclass of values that name every field: a default in place of a lost one would be another network."""
    if lost := [field.name for field in fields(kind) if field.name not in values]:
        raise ValueError(f"it does not say {', '.join(lost)}")
    made: D = TypeAdapter(kind).validate_python(values)
    return made


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def push_to_hub(model: MAEgic3DMAE, repository: str, private: bool, about: Mapping[str, Any]) -> str:
    """Upload what :func:`save_pretrained` writes; returns the address of the commit."""
    hub = _hub(repository)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, Path(folder), about)
        hub.create_repo(repository, private=private, exist_ok=True)
        return str(hub.upload_folder(repo_id=repository, folder_path=folder, allow_patterns=PRETRAINED))


def _hub(name: str) -> Any:
    try:
        import huggingface_hub
    except ImportError:
        what = "is no folder here, and the Hugging Face Hub's client is not installed"
        raise NemesisError(Fault(name, what, "pip install huggingface_hub, or give a folder.")) from None
    return huggingface_hub
