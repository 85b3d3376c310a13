"""ResNet3D-50: learns from labels downstream only; its frozen row is random, or has the weights of MedicalNet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from nemesis.config import key
from nemesis.method import Method, MethodCard, Settings, register

if TYPE_CHECKING:
    from torch import Tensor, nn


class ResNetSettings(Settings):
    """Size of the network, and the options in which MedicalNet's differs from MONAI's defaults, which are shown."""

    layers: tuple[Annotated[int, Field(gt=0)], ...] = key(
        (3, 4, 6, 3), "Bottleneck blocks of the four stages", "blocks", min_length=4, max_length=4
    )
    width: int = key(64, "Channels of the first stage's bottlenecks; the features are 32 times as many", "channels", ge=1)
    stem_stride: int = key(1, "Stride of the first convolution (MedicalNet: 2)", "voxels", ge=1, le=2)
    shortcut_bias: bool = key(True, "Whether convolutions on shortcuts have a bias (MedicalNet: no)")


@register
class ResNet3D(Method[ResNetSettings]):
    """No pretext: supervised from random weights (the paper's row), or from those of MedicalNet where the run names them.

    MedicalNet's third and fourth stage keep their resolution and dilate their convolutions by 2 and 4. MONAI's halve the
    resolution without dilation, with the same shapes of weights: what is loaded here computes something else than its authors'
    network, at an eighth of its features' resolution along every axis.
    """

    card = MethodCard(
        name="resnet3d",
        title="ResNet3D-50",
        paper="Chen et al., Med3D: Transfer Learning for 3D Medical Image Analysis, arXiv 1904.00625; NEMESIS, Table II",
        licence="MIT (network: MONAI, Apache-2.0)",
        version=1,
        pretext=False,
        reconstructs=False,
        smallest_input=16,
        native_input="superpatch, axes (D, H, W), values in [0, 1]; MedicalNet: each volume with mean 0 and deviation 1",
    )
    settings_type = ResNetSettings

    def build(self) -> nn.Module:
        """See :meth:`Method.build`."""
        from monai.networks.nets.resnet import ResNet

        s = self.settings
        return ResNet(
            block="bottleneck",
            layers=list(s.layers),
            block_inplanes=[s.width * 2**stage for stage in range(4)],
            spatial_dims=3,
            n_input_channels=1,
            conv1_t_stride=s.stem_stride,
            shortcut_type="B",
            feed_forward=False,
            bias_downsample=s.shortcut_bias,
        )

    def encode(self, network: Any, voxels: Tensor) -> Tensor:
        """See :meth:`Method.encode`: the last stage, averaged over space."""
        return network(voxels)
