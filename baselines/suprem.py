"""SuPreM (ICLR 2024): pretraining by segmentation of the organs that were drawn, on any of three backbones.

The authors train with AdamW, weight decay 1e-5, rate 1e-4 (their script: 1e-3), 20 epochs of warm-up, then cosine. Here it gets
the recipe and the search budget that every method gets. Their heads (one small network per organ, made from an embedding of its
name) are replaced by one last convolution, as in their own downstream code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from nemesis.config import key
from nemesis.errors import Fault, NemesisError
from nemesis.method import Batch, Draw, Matched, Method, MethodCard, PretextLoss, Published, Settings, register

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

Backbone = Literal["swinunetr", "unet", "segresnet"]
TURN, SHIFT, SHIFT_SIZE = 0.1, 0.2, 0.1  # probabilities per crop, and ± in [0, 1] units
WIDTHS: dict[Backbone, int] = {"swinunetr": 48, "unet": 64, "segresnet": 16}  # as published
WIDTH_STEPS: dict[Backbone, int] = {"swinunetr": 12, "unet": 2, "segresnet": 8}
EDGES: dict[Backbone, tuple[int, int]] = {"swinunetr": (64, 32), "unet": (16, 8), "segresnet": (16, 8)}  # smallest, multiple
LAST: dict[Backbone, str] = {"swinunetr": "out.conv.conv", "unet": "out_tr.final_conv", "segresnet": "conv_final.2.conv"}
ENCODERS: dict[Backbone, tuple[str, ...]] = {
    "swinunetr": ("backbone.swinViT.*",),
    "unet": ("backbone.down_tr*",),
    "segresnet": ("backbone.convInit.*", "backbone.down_layers.*"),
}
MARKS: dict[str, Backbone] = {"swinViT.": "swinunetr", "down_tr64.": "unet", "convInit.": "segresnet"}  # in a file's names
HEADS = ("precls_conv.", "GAP.", "controller.", "organ_embedding", "text_to_vision.")  # of the authors' own pretraining
PAGE = "https://github.com/MrGiovanni/SuPreM"


class SupremSettings(Settings):
    """Backbone and organs."""

    backbone: Backbone = key("swinunetr", "Network that is pretrained, and that segments")
    feature_size: int | None = key(
        None, "Channels of the first stage; null: as published (swinunetr 48, unet 64, segresnet 16)", "channels", ge=1
    )
    window: int = key(7, "Edge of the windows of attention of swinunetr (published weights: 7)", "tokens", ge=2)
    recompute: bool = key(False, "Activation checkpointing of swinunetr: stages are computed again, for less memory")
    classes: tuple[str, ...] = key((), "Organs to segment; filled with those that the pretraining data's label maps name")


@register
class Suprem(Method[SupremSettings]):
    """Sigmoid Dice over the organs that a superpatch shows, and binary cross-entropy over all that were drawn in its scan."""

    card = MethodCard(
        name="suprem",
        title="SuPreM",
        paper="How Well Do Supervised 3D Models Transfer to Medical Imaging Tasks?, ICLR 2024",
        licence="MIT (networks: MONAI, Apache-2.0)",
        version=1,
        pretext=True,
        reconstructs=False,
        smallest_input=16,
        native_input="96³ at 1.5 mm, axes (right, anterior, superior), HU [−175, 250] → [0, 1]; a superpatch under 64³ is "
        "resized up for swinunetr; AdamW 1e-4, weight decay 1e-5, 20 epochs of warm-up, cosine",
        uses_labels=True,
        segments=True,
        published=tuple(
            Published(file=f"supervised_suprem_{backbone}_2100.pth", source=PAGE, trained_on=("AbdomenAtlas",))
            for backbone in WIDTHS
        ),
        small={"backbone": "segresnet", "feature_size": 8},
    )
    settings_type = SupremSettings

    @property
    def feature_size(self) -> int:
        """Channels of the first stage."""
        return self.settings.feature_size or WIDTHS[self.settings.backbone]

    def check(self) -> None:
        """See :meth:`Method.check`."""
        backbone = self.settings.backbone
        if self.feature_size % (step := WIDTH_STEPS[backbone]):
            raise ValueError(f"feature_size {self.feature_size} is not a multiple of {step}, as {backbone} needs")

    def draw(self) -> Draw:
        """See :meth:`Method.draw`: centres on organs and anywhere, 2 : 1."""
        return Draw(self.superpatch, centred=2 / 3)

    def build(self) -> nn.Module:
        """See :meth:`Method.build`; without classes (published weights alone need none) it has one output."""
        from baselines.networks.ras import HouseAxes
        from nemesis.models.heads import start_rare

        backbone = self._backbone(max(1, len(self.settings.classes)))
        start_rare(backbone.get_submodule(LAST[self.settings.backbone]))
        return HouseAxes(backbone, *EDGES[self.settings.backbone])

    def _backbone(self, classes: int) -> nn.Module:
        s, width = self.settings, self.feature_size
        if s.backbone == "swinunetr":
            from baselines.networks.swin import swin_unetr

            return swin_unetr(width, s.window, classes, v2=False, recompute=s.recompute)
        if s.backbone == "unet":
            from baselines.networks.unet3d import UNet3D

            return UNet3D(classes, width)
        from monai.networks.nets.segresnet import SegResNet

        return SegResNet(init_filters=width, in_channels=1, out_channels=classes, blocks_down=(1, 2, 2, 4), blocks_up=(1, 1, 1))

    def pretext_loss(self, network: Any, batch: Batch) -> PretextLoss:
        """See :meth:`Method.pretext_loss`; ``dice`` is at 0.5, per class over the batch, its mean over the classes shown.

        Superpatches are turned and shifted in training mode only.

        Raises:
            ValueError: the batch or the settings name no classes.
        """
        from baselines.networks.augment import draw_moves, shifted
        from baselines.networks.partial_labels import bce_loss, dice_loss, hard_dice, one_hot

        voxels, classes, known = batch.voxels, batch.classes, batch.known
        if classes is None or known is None or not self.settings.classes:
            raise ValueError("SuPreM learns from organ masks: it needs pretraining data with label maps")
        if network.training:
            moves = draw_moves(batch.keys, 1, 0.0, TURN)
            voxels, classes = moves(voxels), moves(classes)
            voxels = shifted(voxels, batch.keys, 1, SHIFT, SHIFT_SIZE)
        logits = network(voxels).float()
        truth = one_hot(classes, len(self.settings.classes))
        dice, bce = dice_loss(logits, truth, known), bce_loss(logits, truth, known)
        monitors = {"dice": hard_dice(logits, truth, known), "dice_loss": dice, "bce": bce}
        return PretextLoss(dice + bce, {name: value.detach() for name, value in monitors.items()})

    def encode(self, network: Any, voxels: Tensor) -> Tensor:
        """See :meth:`Method.encode`: the deepest stage, averaged over space (as published 768, 512 or 128 numbers)."""
        seen, backbone = network.seen(voxels), network.backbone
        if self.settings.backbone == "swinunetr":
            deepest = backbone.swinViT(seen, backbone.normalize)[-1]
        elif self.settings.backbone == "unet":
            deepest = backbone.encode(seen)[-1]
        else:
            deepest = backbone.encode(seen)[0]
        return deepest.mean(dim=(2, 3, 4))

    def segmenter(self, network: Any, classes: int) -> nn.Module:
        """See :meth:`Method.segmenter`: the pretrained network itself, but for a new last layer."""
        import copy
        import itertools

        from torch import nn

        from nemesis.models.heads import start_rare

        # other modules on the same weights: the network keeps its own last layer
        shared = {id(tensor): tensor for tensor in itertools.chain(network.parameters(), network.buffers())}
        segmenter = copy.deepcopy(network, shared)
        parent, _, name = f"backbone.{LAST[self.settings.backbone]}".rpartition(".")
        old = segmenter.get_submodule(f"{parent}.{name}")
        new = nn.Conv3d(old.in_channels, classes, 1).to(old.weight)
        start_rare(new)
        setattr(segmenter.get_submodule(parent), name, new)
        return segmenter

    def load_published(self, network: Any, path: Path) -> Matched:
        """See :meth:`Method.load_published`.

        SwinUNETR and U-Net stand under ``module.backbone.`` of ``net``, SegResNet under ``module.``. Left out on purpose: the
        last layer (its classes are the authors' 25 or 32) and the authors' heads.
        """
        from baselines.networks.swin import refuse_other_swin
        from nemesis.models.foreign import adopt, read_published

        backbone = self.settings.backbone

        def rename(name: str) -> str | None:
            return None if name.startswith((LAST[backbone], *HEADS)) else f"backbone.{name}"

        state = read_published(path)
        holds = next((known for mark, known in MARKS.items() if any(name.startswith(mark) for name in state)), backbone)
        if holds != backbone:
            raise NemesisError(Fault(str(path), f"holds a {holds}, the network is a {backbone}", f"Set `backbone: {holds}`."))
        if backbone == "swinunetr":
            refuse_other_swin(state, path, self.feature_size, self.settings.window, v2=False)
        return adopt(network, state, path, rename, ENCODERS[backbone])
