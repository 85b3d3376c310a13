"""ResNet3D-50: learns from labels downstream only; its frozen row is random, or has the weights of MedicalNet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from nemesis.config import key
from nemesis.errors import Fault, NemesisError
from nemesis.method import Matched, Method, MethodCard, Published, Settings, register

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

MEDICALNET = "https://github.com/Tencent/MedicalNet"
# what MedicalNet was trained with; stride and input have no weights that would tell, and a missing bias is too small to be missed
OPTIONS = {"stem_stride": 2, "shortcut_bias": False, "standardise": True}


class ResNetSettings(Settings):
    """Size of the network, and the options in which MedicalNet's differs from MONAI's defaults, which are shown."""

    layers: tuple[Annotated[int, Field(gt=0)], ...] = key(
        (3, 4, 6, 3), "Bottleneck blocks of the four stages", "blocks", min_length=4, max_length=4
    )
    width: int = key(64, "Channels of the first stage's bottlenecks; the features are 32 times as many", "channels", ge=1)
    stem_stride: int = key(1, "Stride of the first convolution (MedicalNet: 2)", "voxels", ge=1, le=2)
    shortcut_bias: bool = key(True, "Whether convolutions on shortcuts have a bias (MedicalNet: no)")
    standardise: bool = key(False, "Whether a superpatch is brought to mean 0 and deviation 1 (MedicalNet: yes)")


@register
class ResNet3D(Method[ResNetSettings]):
    """No pretext: supervised from random weights (the paper's row), or from those of MedicalNet where the run names them.

    The third and fourth stage of MedicalNet keep the resolution of the second and dilate their convolutions, by 2 and by 4.
    MONAI's halve it instead, with weights of the same shapes: what is loaded here computes something else than its authors'
    network, on a last map of a quarter of its resolution along every axis.
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
        native_input="superpatch, axes (D, H, W), values in [0, 1]; MedicalNet: each volume with mean 0 and deviation 1, and "
        "dilated last stages, which MONAI's are not",
        published=(
            Published(file="resnet_50.pth", source=MEDICALNET),
            Published(file="resnet_50_23dataset.pth", source=MEDICALNET),
        ),
        small={"layers": (1, 1, 1, 1), "width": 4},
    )
    settings_type = ResNetSettings

    def build(self) -> nn.Module:
        """See :meth:`Method.build`; at the defaults MONAI's ``resnet50`` without its classifier."""
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

    def load_published(self, network: Any, path: Path) -> Matched:
        """See :meth:`Method.load_published`: MedicalNet's names are MONAI's; heads of its pretraining are left out.

        Raises:
            NemesisError: also where the settings are not those that MedicalNet was trained with.
        """
        from nemesis.models.foreign import load_published

        if wrong := [name for name, value in OPTIONS.items() if getattr(self.settings, name) != value]:
            what = f"is of a network with other {' and '.join(wrong)} than the settings say"
            remedy = "Set " + ", ".join(f"`{name}: {str(value).lower()}`" for name, value in OPTIONS.items()) + "."
            raise NemesisError(Fault(str(path), what, remedy))
        encoder = ["conv1.*", "bn1.*", "layer*"]
        return load_published(network, path, lambda name: None if name.startswith(("conv_seg.", "fc.")) else name, encoder)

    def encode(self, network: Any, voxels: Tensor) -> Tensor:
        """See :meth:`Method.encode`: the last stage, averaged over space."""
        if self.settings.standardise:
            mean, deviation = voxels.mean((2, 3, 4), keepdim=True), voxels.std((2, 3, 4), keepdim=True)
            voxels = (voxels - mean) / deviation.clamp_min(1e-3)  # of air alone there is nothing to bring up
        return network(voxels)
