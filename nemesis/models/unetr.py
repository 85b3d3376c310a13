"""A decoder in the style of UNETR, by which an encoder of the NEMESIS network segments.

Hatamizadeh et al., UNETR: Transformers for 3D Medical Image Segmentation, WACV 2022: the tokens after some of the encoder's
blocks, set out on their grid and made finer by deconvolution, are the skips of a U-Net.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from monai.networks.blocks.dynunet_block import UnetResBlock
from monai.networks.blocks.unetr_block import UnetrBasicBlock, UnetrUpBlock
from torch import Tensor, nn

from nemesis.models.autoencoder import Encoder
from nemesis.models.heads import start_rare

WIDTH = 16  # channels at full resolution, as in the paper; twice as many at every level below
NORM = "instance"


def strides(patch: int) -> list[int]:
    """By how much each level is finer than the one below it, from the tokens up to the voxels: the prime factors of a token's
    edge. 16 voxels are the paper's four steps of 2.

    >>> strides(16), strides(12)
    ([2, 2, 2, 2], [3, 2, 2])
    """
    found, rest = [], patch
    while rest > 1:
        found.append(next(n for n in range(2, rest + 1) if rest % n == 0))
        rest //= found[-1]
    return found[::-1] or [1]


def skips(depth: int, levels: int) -> list[int]:
    """After how many of the encoder's blocks each skip leaves it, the deepest first: evenly spread, as the paper's 9, 6 and 3 of
    12 blocks under four levels. The last block is the bottleneck's, the voxels are the skip at full resolution.

    >>> skips(12, 4), skips(4, 2), skips(1, 3)
    ([9, 6, 3], [2], [1, 1])
    """
    return [max(1, round(depth * (levels - n) / levels)) for n in range(1, levels)]


class Unetr(nn.Module):
    """Voxels (B, C, D, H, W) → logits (B, classes, D, H, W).

    Args:
        encoder: taken over, with its weights; every token is seen.
        classes: how many logits a voxel has.
    """

    def __init__(self, encoder: Encoder, classes: int) -> None:
        super().__init__()
        steps, width = strides(encoder.patch[0]), encoder.norm.normalized_shape[0]
        channels = [WIDTH * 2**level for level in reversed(range(len(steps)))]  # of each level, the coarsest first
        self.encoder, self.after = encoder, skips(len(encoder.blocks), len(steps))
        self.skips = nn.ModuleList(_upsampled(width, here, steps[: n + 1]) for n, here in enumerate(channels[:-1]))
        self.voxels = UnetrBasicBlock(3, encoder.expects[0], WIDTH, 3, 1, NORM, res_block=True)
        self.levels = nn.ModuleList(
            UnetrUpBlock(3, below, here, 3, step, NORM, res_block=True)
            for below, here, step in zip([width, *channels], channels, steps, strict=False)
        )
        self.head = nn.Conv3d(WIDTH, classes, 1)
        start_rare(self.head)

    def forward(self, voxels: Tensor) -> Tensor:
        """See :class:`Unetr`."""
        *states, x = self.encoder.grids(voxels, self.after)
        finer = [skip(state) for skip, state in zip(self.skips, states, strict=True)]
        for level, skip in zip(self.levels, [*finer, self.voxels(voxels)], strict=True):
            x = level(x, skip)
        return cast(Tensor, self.head(x))


def _upsampled(width: int, channels: int, steps: Sequence[int]) -> nn.Sequential:
    """Tokens' numbers (B, width, d, h, w) → a skip (B, channels, …), finer by every step."""
    first, *others = steps
    layers: list[nn.Module] = [nn.ConvTranspose3d(width, channels, first, first)]
    for step in others:
        layers += [nn.ConvTranspose3d(channels, channels, step, step), UnetResBlock(3, channels, channels, 3, 1, NORM)]
    return nn.Sequential(*layers)
