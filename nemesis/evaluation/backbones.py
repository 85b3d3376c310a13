"""The networks that LPIPS compares pictures by, and the files of their weights; found without torch, as planning asks for them.

Only the weights of the heads come with a package (torchmetrics). Those of the networks, trained on ImageNet, are files of
torchvision's, whose names end in the first digits of their sha256.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from nemesis.errors import Fault, NemesisError

if TYPE_CHECKING:
    from nemesis.config import Lpips

SOURCE = "https://download.pytorch.org/models/"
KEY = "reconstruction.lpips.weights"
Network = Literal["alex", "vgg", "squeeze"]  # as LPIPS calls them


@dataclass(frozen=True)
class Backbone:
    """A network of LPIPS (Zhang et al., CVPR 2018)."""

    title: str
    file: str  # of its weights, as published
    smallest: int  # edge of a picture in pixels, under which a layer has no output

    @property
    def sha256(self) -> str:
        """The first digits of the file's, as its name tells them."""
        return Path(self.file).stem.rpartition("-")[2]


BACKBONES: dict[Network, Backbone] = {
    "alex": Backbone("AlexNet", "alexnet-owt-7be5be79.pth", 31),
    "vgg": Backbone("VGG16", "vgg16-397923af.pth", 16),
    "squeeze": Backbone("SqueezeNet 1.1", "squeezenet1_1-b8a52dc0.pth", 17),
}


def hub_folder() -> Path:
    """Where torch.hub, and so torchvision, keeps the weights that it downloaded."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("TORCH_HOME") or cache / "torch") / "hub" / "checkpoints"


def find_weights(settings: Lpips, sha256: Callable[[Path], str]) -> tuple[Path, str] | None:
    """The file of the network's weights with its sha256; None where none is named and torch.hub's cache holds none.

    Args:
        sha256: of a file.

    Raises:
        NemesisError: the named file is not there, or it, or the one in the cache, is not the published one.
    """
    backbone = BACKBONES[settings.network]
    path = Path(settings.weights) if settings.weights is not None else hub_folder() / backbone.file
    if not path.is_file():
        if settings.weights is None:
            return None
        raise NemesisError(Fault(KEY, f"{path} does not exist", f"Get {SOURCE}{backbone.file} and say where it lies."))
    if not (found := sha256(path)).startswith(backbone.sha256):
        what = f"{path} is not {backbone.title}'s {backbone.file}: its sha256 starts with {found[: len(backbone.sha256)]}"
        raise NemesisError(Fault(KEY, what, f"Get {SOURCE}{backbone.file} again, or name the `network` that the file is of."))
    return path, found


def how_to_get(network: Network) -> str:
    """A sentence: why LPIPS is not measured, and what to do."""
    file = BACKBONES[network].file
    return f"LPIPS not measured: put {SOURCE}{file} into torch.hub's cache folder, or say where it lies as `{KEY}`."
