"""LPIPS (Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, CVPR 2018) of CT volumes.

The feature stacks are laid out as published and their parameters named as torchvision names them (``features.0.weight``, …), so
its files of weights fit, without torchvision; the linear heads are those that torchmetrics ships.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nemesis.errors import Fault, NemesisError
from nemesis.evaluation.backbones import BACKBONES, KEY, Network
from nemesis.models.foreign import read_published

TAPS: dict[Network, tuple[int, ...]] = {  # layers after which features are compared
    "alex": (1, 4, 7, 9, 11),
    "vgg": (3, 8, 15, 22, 29),
    "squeeze": (1, 4, 7, 9, 10, 11, 12),
}
VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)  # channels; 0: halve
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of the red, green and blue in [−1, 1] that the networks expect
PIXELS_AT_ONCE = 2**20
EPSILON = 1e-8


class Fire(nn.Module):
    """SqueezeNet's module (Iandola et al., arXiv 1602.07360): few channels, then 1×1 and 3×3 side by side."""

    def __init__(self, channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, 2 · expanded, H, W)."""
        x = self.squeeze(x).relu()
        return torch.cat([self.expand1x1(x).relu(), self.expand3x3(x).relu()], dim=1)


def feature_stack(network: Network) -> nn.Sequential:
    """The layers up to the last one that is compared: AlexNet (Krizhevsky, arXiv 1404.5997), VGG16 (Simonyan and Zisserman,
    arXiv 1409.1556, configuration D) or SqueezeNet 1.1."""
    layers: list[nn.Module] = []
    if network == "alex":
        shapes = ((3, 64, 11, 4, 2), (64, 192, 5, 1, 2), (192, 384, 3, 1, 1), (384, 256, 3, 1, 1), (256, 256, 3, 1, 1))
        for number, (channels, out, kernel, stride, padding) in enumerate(shapes):
            layers += [nn.Conv2d(channels, out, kernel, stride, padding), nn.ReLU()]
            layers += [nn.MaxPool2d(3, 2)] if number < 2 else []
    elif network == "vgg":
        channels = 3
        for out in VGG16:
            layers += [nn.Conv2d(channels, out, 3, padding=1), nn.ReLU()] if out else [nn.MaxPool2d(2, 2)]
            channels = out or channels
    else:
        layers += [nn.Conv2d(3, 64, 3, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True)]
        layers += [Fire(64, 16, 64), Fire(128, 16, 64), nn.MaxPool2d(3, 2, ceil_mode=True)]
        layers += [Fire(128, 32, 128), Fire(256, 32, 128), nn.MaxPool2d(3, 2, ceil_mode=True)]
        layers += [Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256)]
    return nn.Sequential(*layers)


class Lpips(nn.Module):
    """LPIPS of pictures and of volumes; the weights of the stack are random until :meth:`load`."""

    shift: Tensor
    scale: Tensor

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network, self.taps = network, TAPS[network]
        self.features = feature_stack(network)
        heads = torch.load(_heads(network), map_location="cpu", weights_only=True)
        self.heads = nn.ParameterList(heads[f"lin{number}.model.1.weight"].flatten() for number in range(len(self.taps)))
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def load(self, path: Path) -> Lpips:
        """Take the stack's weights from a file of torchvision's.

        Raises:
            NemesisError: the file is something else, damaged, or carries code.
        """
        stored = read_published(path)
        own = {name.removeprefix("features."): value for name, value in stored.items() if name.startswith("features.")}
        try:
            self.features.load_state_dict(own)
        except RuntimeError as error:
            what = f"{path} does not hold the weights of {BACKBONES[self.network].title}: {str(error).splitlines()[-1].strip()}"
            raise NemesisError(Fault(KEY, what, f"Get {BACKBONES[self.network].file} again.")) from None
        return self

    def forward(self, picture: Tensor, target: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [−1, 1] → their distances (B,)."""
        return self._distance(self._features(picture), self._features(target))

    @torch.no_grad()
    def of_volumes(self, volumes: Sequence[Tensor], target: Tensor) -> list[float]:
        """Distance of each volume (D, H, W) in [0, 1] to the target: the mean over its axial, coronal and sagittal slices of
        each plane's mean. Values beyond [0, 1] are clipped; grey stands in all three channels.

        Returns:
            NaN where a slice would be smaller than the network takes.
        """
        if min(target.shape) < BACKBONES[self.network].smallest or not volumes:
            return [float("nan")] * len(volumes)
        totals = torch.zeros(len(volumes), dtype=torch.float64)
        for axis in range(3):
            sums = torch.zeros(len(volumes), dtype=torch.float64)
            for first, last in _slabs(target.shape, axis):
                truth = self._features(self._pictures(target, axis, first, last))
                for number, volume in enumerate(volumes):
                    found = self._features(self._pictures(volume, axis, first, last))
                    sums[number] += self._distance(found, truth).double().sum().cpu()
            totals += sums / target.shape[axis]
        return (totals / 3).tolist()

    def _pictures(self, volume: Tensor, axis: int, first: int, last: int) -> Tensor:
        slices = volume.movedim(axis, 0)[first:last, None].to(self.shift.device, torch.float32)
        return (2 * slices.clamp(0, 1) - 1).expand(-1, 3, -1, -1)

    def _features(self, pictures: Tensor) -> list[Tensor]:
        """Of every tap, of unit length along the channels."""
        found, x = [], (pictures - self.shift) / self.scale
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in self.taps:
                found.append(x / (x.square().sum(1, keepdim=True) + EPSILON).sqrt())
        return found

    def _distance(self, one: list[Tensor], other: list[Tensor]) -> Tensor:
        layers: Any = [
            torch.einsum("bchw,c->bhw", (a - b).square(), head).mean(dim=(1, 2))
            for a, b, head in zip(one, other, self.heads, strict=True)
        ]
        return torch.stack(layers).sum(0)


def _heads(network: Network) -> Path:
    """The file in which torchmetrics ships the linear heads; torchmetrics is not imported for it."""
    spec = find_spec("torchmetrics")
    assert spec is not None and spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0], "functional", "image", "lpips_models", f"{network}.pth")


def _slabs(shape: Sequence[int], axis: int) -> Iterator[tuple[int, int]]:
    """Ranges of slices across an axis that are dealt with at once."""
    pixels = shape[0] * shape[1] * shape[2] // shape[axis]
    step = max(1, PIXELS_AT_ONCE // pixels)
    for first in range(0, shape[axis], step):
        yield first, min(first + step, shape[axis])
