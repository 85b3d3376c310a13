"""Published networks see a scan along (right, anterior, superior); the house stores (superior, right, anterior).

Their weights mean something along their own axes only, so voxels are turned on the way in and maps on the way out.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import interpolate


def to_ras(house: Tensor) -> Tensor:
    """(B, C, D, H, W) → (B, C, H, W, D): first voxel axis left→right, then posterior→anterior, then inferior→superior."""
    return house.permute(0, 1, 3, 4, 2).contiguous()


def to_house(ras: Tensor) -> Tensor:
    """(B, C, right, anterior, superior) → (B, C, D, H, W)."""
    return ras.permute(0, 1, 4, 2, 3).contiguous()


def enlarged(voxels: Tensor, smallest: int, multiple: int) -> Tensor:
    """Voxels (B, C, D, H, W), each edge resized up (trilinear) to the next multiple that is not under ``smallest``."""
    size = [max(smallest, -(-edge // multiple) * multiple) for edge in voxels.shape[2:]]
    return resized(voxels, size)


def resized(voxels: Tensor, size: list[int]) -> Tensor:
    """Voxels (B, C, ...) resized (trilinear, edges on edges) to ``size``."""
    if list(voxels.shape[2:]) == size:
        return voxels
    return interpolate(voxels, size, mode="trilinear", align_corners=False)


class HouseAxes(nn.Module):
    """A segmentation network that works along (right, anterior, superior), for voxels and logits on the house's axes and grid.

    Args:
        backbone: (B, 1, right, anterior, superior) → logits (B, K, right, anterior, superior).
        smallest: the shortest edge it takes, in voxels; shorter ones are resized up, and the logits back.
        multiple: of which every edge must be one.
    """

    def __init__(self, backbone: nn.Module, smallest: int, multiple: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.smallest, self.multiple = smallest, multiple

    def seen(self, voxels: Tensor) -> Tensor:
        """Voxels (B, 1, D, H, W) as the backbone sees them."""
        return to_ras(enlarged(voxels, self.smallest, self.multiple))

    def forward(self, voxels: Tensor) -> Tensor:
        """Voxels (B, 1, D, H, W) → logits (B, K, D, H, W)."""
        return resized(to_house(self.backbone(self.seen(voxels))), list(voxels.shape[2:]))
