"""The sizes of an nnFormer; torch is not imported, as planning reads this."""

from __future__ import annotations

from dataclasses import dataclass

from nemesis.models.architecture import Size


@dataclass(frozen=True)
class Shape:
    """What a network is made of. crop: voxels (D, H, W); patch: voxels of a token of the first stage; width: its numbers; per
    stage: depths (blocks), heads, windows (edge of a local volume in tokens)."""

    crop: Size = (64, 128, 128)
    patch: Size = (2, 4, 4)
    width: int = 192
    depths: tuple[int, ...] = (2, 2, 2, 2)
    heads: tuple[int, ...] = (6, 12, 24, 48)
    windows: tuple[int, ...] = (4, 4, 8, 4)

    def __post_init__(self) -> None:
        if not len(self.depths) == len(self.heads) == len(self.windows):
            raise ValueError("depths, heads and windows name different numbers of stages")
        if any(edge not in (1, 2, 4) for edge in self.patch):
            raise ValueError(f"patch {self.patch} has an edge that two strides of 1 or 2 do not give: 1, 2 and 4 can be had")
        if any(n % edge for n, edge in zip(self.crop, self.unit, strict=True)):
            raise ValueError(f"crop {self.crop} is not a multiple of {self.unit}, the voxels of a token of the last stage")
        if wrong := [stage for stage, heads in enumerate(self.heads) if self.widths[stage] % heads]:
            raise ValueError(f"width {self.widths[wrong[0]]} of stage {wrong[0] + 1} is not a multiple of its heads")

    @property
    def stages(self) -> int:
        """How many there are."""
        return len(self.depths)

    @property
    def widths(self) -> tuple[int, ...]:
        """Numbers of a token, by stage."""
        return tuple(self.width * 2**stage for stage in range(self.stages))

    @property
    def unit(self) -> Size:
        """Voxels (D, H, W) of a token of the last stage."""
        return self._times(self.patch, 2 ** (self.stages - 1))

    def grid(self, stage: int) -> Size:
        """Tokens (D, H, W) of a stage, counted from 0."""
        d, h, w = (n // (edge * 2**stage) for n, edge in zip(self.crop, self.patch, strict=True))
        return d, h, w

    @staticmethod
    def _times(size: Size, factor: int) -> Size:
        return size[0] * factor, size[1] * factor, size[2] * factor
