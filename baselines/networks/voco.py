"""VoCo's crops, overlaps, network and loss: Wu, Zhuang and Chen, "VoCo", CVPR 2024 (arXiv 2402.17300)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from baselines.networks.ras import resized, to_ras
from baselines.networks.swin import swin_unetr
from nemesis.models.keyed import Keys

PARTS = ("swinViT", "encoder1", "encoder2", "encoder3", "encoder4", "encoder10")  # of SwinUNETR, that VoCo pretrains


@dataclass(frozen=True)
class Layout:
    """Where crops lie in a volume (crop, grid · crop, grid · crop) voxels (D, H, W): grid² base crops tile it in the axial plane;
    ``randoms`` more lie anywhere; each is resized to ``edge``."""

    crop: int
    grid: int
    randoms: int
    edge: int

    def starts(self, keys: Keys) -> Tensor:
        """First voxels (B, randoms, 2) of the random crops along H and W, uniform over all places inside the volume."""
        places = (self.grid - 1) * self.crop + 1
        return (keys.uniform("random crops", 2 * self.randoms) * places).long().view(-1, self.randoms, 2)

    def overlaps(self, starts: Tensor) -> Tensor:
        """Share of each random crop's area that lies in each base crop: (B, randoms, 2) → (B, randoms, grid²), rows sum to 1.

        Base crop i · grid + j is the i-th along H and the j-th along W.
        """
        bases = torch.arange(self.grid, device=starts.device) * self.crop
        lengths = (self.crop - (starts[..., None] - bases).abs()).clamp_min(0).float() / self.crop  # (B, R, 2, grid)
        return (lengths[:, :, 0, :, None] * lengths[:, :, 1, None, :]).flatten(2)

    def cut(self, volumes: Tensor, starts: Tensor) -> Tensor:
        """Volumes (B, 1, D, H, W) → base crops, then random ones, (B, grid² + randoms, 1, crop, crop, crop)."""
        b, c, g = len(volumes), self.crop, self.grid
        bases = volumes.view(b, 1, c, g, c, g, c).permute(0, 3, 5, 1, 2, 4, 6).reshape(b, g * g, 1, c, c, c)
        line = torch.arange(c, device=volumes.device)
        h, w = (starts[..., axis, None] + line for axis in (0, 1))  # (B, R, crop)
        sample = torch.arange(b, device=volumes.device)[:, None, None, None, None]
        crops = volumes[:, 0][sample, line[:, None, None], h[:, :, None, :, None], w[:, :, None, None, :]]
        return torch.cat([bases, crops[:, :, None]], 1)

    def fitted(self, crops: Tensor) -> Tensor:
        """Crops (N, 1, crop, crop, crop) resized to ``edge``."""
        return resized(crops, [self.edge] * 3)


class Head(nn.Module):
    """Three fully connected layers, batch normalisation without affine parameters and ReLU between: (N, inputs) → (N, width).

    As released, the normalisation keeps no running statistics: the crops of a batch are normalised by each other, always.
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.layer1, self.layer2 = (
            nn.Sequential(
                nn.Linear(n, width), nn.BatchNorm1d(width, affine=False, track_running_stats=False), nn.ReLU(inplace=True)
            )
            for n in (inputs, width)
        )
        self.layer3 = nn.Sequential(nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        return self.layer3(self.layer2(self.layer1(x)))


class Encoder(nn.Module):
    """SwinUNETR's encoder (second version) and VoCo's head, with the names of the published weights."""

    def __init__(self, feature_size: int, window: int, width: int, recompute: bool) -> None:
        super().__init__()
        unetr = swin_unetr(feature_size, window, 1, v2=True, recompute=recompute)
        self.swinViT = unetr.swinViT
        self.encoder1, self.encoder2, self.encoder3 = unetr.encoder1, unetr.encoder2, unetr.encoder3
        self.encoder4, self.encoder10 = unetr.encoder4, unetr.encoder10
        self.proj_head = Head(24 * feature_size, width)

    def embed(self, house: Tensor) -> Tensor:
        """Crops (N, 1, D, H, W) → the five maps, each averaged over space, joined: (N, 24 · feature size)."""
        x = to_ras(house)
        hidden = self.swinViT(x)
        maps = [self.encoder1(x), self.encoder2(hidden[0]), self.encoder3(hidden[1]), self.encoder4(hidden[2])]
        return torch.cat([m.mean((2, 3, 4)) for m in (*maps, self.encoder10(hidden[4]))], 1)

    def forward(self, house: Tensor) -> Tensor:
        """Crops (N, 1, D, H, W) → (N, width)."""
        return self.proj_head(self.embed(house))


class VoCo(nn.Module):
    """The encoder that learns and, where asked for, its teacher: another one, whose weights follow it without gradient.

    ``momentum``: what the teacher keeps of itself at a training step, or None for no teacher.
    """

    def __init__(self, feature_size: int, window: int, width: int, recompute: bool, momentum: float | None) -> None:
        super().__init__()
        self.student = Encoder(feature_size, window, width, recompute)
        self.momentum = momentum
        if momentum is not None:  # as released, it starts from random weights of its own
            self.teacher = Encoder(feature_size, window, width, recompute).requires_grad_(False)

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor | None]:
        """Crops (N, 1, D, H, W) → what the student makes of them (N, width), and the teacher."""
        out = self.student(crops)
        if self.momentum is None:
            return out, None
        with torch.no_grad():
            if self.training:
                for own, other in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                    own.lerp_(other, 1 - self.momentum)
            return out, self.teacher(crops)


def similarity(crops: Tensor, bases: Tensor) -> Tensor:
    """max(0, cosine) of crops (B, R, F) and bases (B, K, F): (B, R, K) in [0, 1] (paper, equation 1)."""
    return (normalize(crops, dim=-1) @ normalize(bases, dim=-1).mT).clamp(0, 1)


def position_loss(p: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """How far predicted overlaps p are from the true ones y, (B, R, K) both: means over the samples of
    pos = −Σ y log(1 − |y − p| + 1e-6) / Σ y (equation 2) and neg = Σ_{y=0} p² / #{y=0}."""
    pos = -(y * (1 - (y - p).abs() + 1e-6).log()).sum((1, 2)) / y.sum((1, 2))
    none = (y == 0).float()
    neg = (none * p.square()).sum((1, 2)) / none.sum((1, 2)).clamp_min(1)
    return pos.mean(), neg.mean()


def discrepancy_loss(bases: Tensor) -> Tensor:
    """reg = the mean of max(0, cosine)² over the pairs of a sample's base crops (B, K, F), the second of a pair without gradient
    (equation 3); its mean over the samples."""
    cosine = similarity(bases, bases.detach())
    first, second = torch.triu_indices(bases.shape[1], bases.shape[1], 1, device=bases.device)
    return cosine[:, first, second].square().mean()


def correlation(p: Tensor, y: Tensor) -> Tensor:
    """Pearson's, of all numbers of p with those of y; 0 where one of them does not vary."""
    p, y = p.flatten() - p.mean(), y.flatten() - y.mean()
    return (p * y).sum() / (p.norm() * y.norm()).clamp_min(1e-8)
