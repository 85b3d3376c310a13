"""The 3D U-Net of Models Genesis, which SuPreM pretrained as well, with the names of its published weights.

Zhou et al., Models Genesis, MICCAI 2019; 19.08 M parameters at width 64. The published code normalises by the batch's own
statistics even in evaluation, so that a vector would depend on its neighbours; here evaluation uses the running statistics,
which the files hold.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

STAGES = (64, 128, 256, 512)  # widths, and numbers in the names, whatever the width


class Unit(nn.Module):
    """Convolution 3³, batch normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(inputs, outputs, 3, padding=1)
        self.bn1 = nn.BatchNorm3d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, ...) → (B, outputs, ...)."""
        return torch.relu(self.bn1(self.conv1(x)))


class Down(nn.Module):
    """Two units, the first of half the width."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.ops = nn.Sequential(Unit(inputs, outputs // 2), Unit(outputs // 2, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, ...) → (B, outputs, ...)."""
        return self.ops(x)


class Up(nn.Module):
    """A transposed convolution that doubles the edges, the map of the way down beside it, two units of that map's width."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.up_conv = nn.ConvTranspose3d(inputs, inputs, 2, stride=2)
        self.ops = nn.Sequential(Unit(inputs + outputs, outputs), Unit(outputs, outputs))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, inputs, n, n, n) and (B, outputs, 2n, 2n, 2n) → (B, outputs, 2n, 2n, 2n)."""
        return self.ops(torch.cat([self.up_conv(x), skip], 1))


class Last(nn.Module):
    """The 1³ convolution to logits."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.final_conv = nn.Conv3d(inputs, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, ...) → (B, classes, ...)."""
        return self.final_conv(x)


class UNet3D(nn.Module):
    """(B, 1, n, n, n), n a multiple of 8 → logits (B, classes, n, n, n); ``width``: channels of the first stage, even."""

    def __init__(self, classes: int, width: int = 64) -> None:
        super().__init__()
        w = [width << stage for stage in range(4)]
        for number, inputs, outputs in zip(STAGES, [1, *w], w, strict=False):
            self.add_module(f"down_tr{number}", Down(inputs, outputs))
        for stage in (2, 1, 0):
            self.add_module(f"up_tr{STAGES[stage]}", Up(w[stage + 1], w[stage]))
        self.out_tr = Last(width, classes)

    def encode(self, x: Tensor) -> list[Tensor]:
        """The maps of the four stages, (B, width · 2^k, n / 2^k, ...)."""
        maps: list[Tensor] = []
        for number in STAGES:
            x = self.get_submodule(f"down_tr{number}")(nn.functional.max_pool3d(x, 2) if maps else x)
            maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        *skips, x = self.encode(x)
        for number in (256, 128, 64):
            x = self.get_submodule(f"up_tr{number}")(x, skips.pop())
        return self.out_tr(x)
