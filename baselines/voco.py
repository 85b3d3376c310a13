"""VoCo (CVPR 2024, arXiv 2402.17300): tell where in the body a crop lies, by its likeness to base crops of the same scan.

A scan's body is resized to one size for all. 4×4 base crops tile it in the axial plane; random crops overlap up to four of them.
The cosine of a random crop's embedding with each base crop's is to be the share of its area that they have in common.

The authors train with AdamW (amsgrad), rate 1e-4, weight decay 0.01, 5,000 steps of warm-up, cosine to 250,000 steps, 2 volumes a
step. Here it gets the recipe and the search budget that every method gets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import model_validator

from nemesis.config import key
from nemesis.method import Batch, Matched, Method, MethodCard, PretextLoss, Published, Settings, WholeVolume, register

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from baselines.networks.voco import Layout

PRESETS: dict[str, dict[str, Any]] = {"paper": {}, "released": {"teacher": True}}
FLIP, TURN, SHIFT, SHIFT_SIZE = 0.2, 0.2, 0.1, 0.1  # probabilities per crop (flips: and axis), and ± in [0, 1] units
PAGE, SEEN_10K = "https://github.com/Luffy03/VoCo", (
    "BTCV", "TCIA-COVID19", "LUNA16", "STOIC", "TotalSegmentator", "FLARE23", "LIDC-IDRI", "HNSCC",
)  # fmt: skip
PAGE_160K, SEEN_160K = "https://github.com/Luffy03/Large-Scale-Medical", (*SEEN_10K, "PreCT-160K")


class VoCoSettings(Settings):
    """Crops, network, and whether it has a teacher."""

    preset: Literal["paper", "released"] = key(
        "paper", "Whose description gives the values of the keys that are not set; the defaults shown are the paper's"
    )
    crop: int = key(96, "Edge of a crop; the scan's body is resized to crop × grid·crop × grid·crop", "voxels", ge=2)
    grid: int = key(4, "Base crops along either axis of the axial plane", "crops", ge=2)
    randoms: int = key(2, "Random crops of a scan", "crops", ge=1)
    edge: int = key(64, "Edge to which crops are resized: a multiple of 32, 64 or more", "voxels", ge=64, multiple_of=32)
    feature_size: int = key(
        48, "Width of the first stage (published weights: 48 base, 96 large, 192 huge)", "numbers", ge=12, multiple_of=12
    )
    window: int = key(7, "Edge of the windows of attention (published weights: 7)", "tokens", ge=2)
    head_width: int = key(2048, "Width of the head and of what crops are compared by", "numbers", ge=1)
    teacher: bool = key(
        False,
        "Compare with crops as a teacher sees them, whose weights follow the network's own (released: true); without it, crops "
        "and base crops both get the gradient",
    )
    teacher_momentum: float = key(0.9, "What the teacher keeps of itself at a step", "[0, 1)", ge=0, lt=1)
    recompute: bool = key(False, "Activation checkpointing: stages are computed again on the way back, for less memory")

    @model_validator(mode="before")
    @classmethod
    def _take_from_preset(cls, given: Any) -> Any:
        return PRESETS.get(given.get("preset", "paper"), {}) | given if isinstance(given, dict) else given


@register
class VoCo(Method[VoCoSettings]):
    """L = pos + neg + reg: true overlaps predicted, no likeness where there is no overlap, and base crops unlike each other."""

    card = MethodCard(
        name="voco",
        title="VoCo",
        paper="VoCo: A Simple-yet-Effective Volume Contrastive Learning Framework for 3D Medical Image Analysis, CVPR 2024",
        licence="MIT (network: MONAI, Apache-2.0)",
        version=1,
        pretext=True,
        reconstructs=False,
        smallest_input=16,
        native_input="body resized to 384×384×96, crops of 96³ resized to 64³, axes (right, anterior, superior), HU [−175, 250] "
        "→ [0, 1]; a superpatch under 64³ is resized up; AdamW (amsgrad) 1e-4, weight decay 0.01, 250,000 steps of 2 volumes",
        # a bias before a normalisation of the batch changes nothing
        no_gradient=("student.proj_head.layer1.0.bias", "student.proj_head.layer2.0.bias", "teacher.*"),
        segments=True,
        published=(
            Published(file="VoCo_10k.pt", source=PAGE, trained_on=SEEN_10K),
            Published(file="VoCo_cvpr.pt", source=PAGE, trained_on=("BTCV", "TCIA-COVID19", "LUNA16")),
            Published(file="VoCo_B_SSL_head.pt", source=PAGE_160K, trained_on=SEEN_160K),
            Published(file="VoCo_L_SSL_head.pt", source=PAGE_160K, trained_on=SEEN_160K),
            Published(file="VoCo_H_SSL_head.pt", source=PAGE_160K, trained_on=SEEN_160K),
            Published(
                file="VoComni_B.pt",
                source=PAGE_160K,
                trained_on=(*SEEN_160K, "WORD", "LiTS", "KiTS23", "MSD Pancreas", "AMOS22"),
            ),
        ),
        small={"crop": 16, "grid": 2, "randoms": 1, "feature_size": 12, "window": 2, "head_width": 64},
    )
    settings_type = VoCoSettings

    @property
    def layout(self) -> Layout:
        """Where the crops lie."""
        from baselines.networks.voco import Layout

        s = self.settings
        return Layout(s.crop, s.grid, s.randoms, s.edge)

    def draw(self) -> WholeVolume:
        """See :meth:`Method.draw`; a crop that is resized down shows as many voxels as are left of it."""
        s = self.settings
        shown = (s.grid**2 + s.randoms) * min(s.crop, s.edge) ** 3
        return WholeVolume((s.crop, s.grid * s.crop, s.grid * s.crop), shown)

    def build(self) -> nn.Module:
        """See :meth:`Method.build`."""
        from baselines.networks.voco import VoCo as Network

        s = self.settings
        momentum = s.teacher_momentum if s.teacher else None
        return Network(s.feature_size, s.window, s.head_width, s.recompute, momentum)

    def pretext_loss(self, network: Any, batch: Batch) -> PretextLoss:
        """See :meth:`Method.pretext_loss`; ``overlap_correlation`` is Pearson's, of predicted with true overlaps, over all
        pairs of a random and a base crop. Crops are augmented in training mode only.

        Raises:
            ValueError: the voxels are not of the size that :meth:`draw` asks for.
        """
        from baselines.networks.augment import draw_moves, shifted
        from baselines.networks.voco import correlation, discrepancy_loss, position_loss, similarity

        layout, volumes = self.layout, batch.voxels
        if tuple(volumes.shape[2:]) != self.draw().size:
            raise ValueError(f"volumes of {'×'.join(map(str, volumes.shape[2:]))} voxels are not the view that VoCo draws")
        starts = layout.starts(batch.keys)
        crops = layout.cut(volumes, starts)
        b, n, bases = len(volumes), crops.shape[1], layout.grid**2
        flat = layout.fitted(crops.flatten(0, 1))
        if network.training:
            flat = draw_moves(batch.keys, n, FLIP, TURN)(flat)
            flat = shifted(flat, batch.keys, n, SHIFT, SHIFT_SIZE)
        mine, others = network(flat)
        mine = mine.float().view(b, n, -1)
        if others is None:
            p = similarity(mine[:, bases:], mine[:, :bases])
        else:
            others = others.float().view(b, n, -1)
            p = (similarity(mine[:, bases:], others[:, :bases]) + similarity(others[:, bases:], mine[:, :bases])) / 2
        y = layout.overlaps(starts)
        pos, neg = position_loss(p, y)
        reg = discrepancy_loss(mine[:, :bases])
        monitors = {"overlap_correlation": correlation(p, y), "pos": pos, "neg": neg, "reg": reg}
        return PretextLoss(pos + neg + reg, {name: value.detach() for name, value in monitors.items()})

    def encode(self, network: Any, voxels: Tensor) -> Tensor:
        """See :meth:`Method.encode`: the five maps, averaged over space and joined (1,152 at feature size 48)."""
        from baselines.networks.ras import enlarged
        from baselines.networks.swin import MULTIPLE, SMALLEST

        return network.student.embed(enlarged(voxels, SMALLEST, MULTIPLE))

    def segmenter(self, network: Any, classes: int) -> nn.Module:
        """See :meth:`Method.segmenter`: SwinUNETR on the pretrained encoder; its decoder is new."""
        from baselines.networks.ras import HouseAxes
        from baselines.networks.swin import MULTIPLE, SMALLEST, swin_unetr
        from baselines.networks.voco import PARTS
        from nemesis.models.heads import start_rare

        s, device = self.settings, next(network.parameters()).device
        unetr = swin_unetr(s.feature_size, s.window, classes, v2=True, recompute=s.recompute).to(device)
        start_rare(unetr.out.conv.conv)
        for name in PARTS:
            setattr(unetr, name, network.student.get_submodule(name))
        return HouseAxes(unetr, SMALLEST, MULTIPLE)

    def load_published(self, network: Any, path: Path) -> Matched:
        """See :meth:`Method.load_published`.

        The encoder is taken, and the head where it is that of the CVPR release (``proj_head``). Left out on purpose: the teacher,
        heads of the later objective (``layer1`` to ``layer3``), and the decoder and last layer of VoComni.
        """
        from baselines.networks.swin import refuse_other_swin
        from baselines.networks.voco import PARTS
        from nemesis.models.foreign import adopt, read_published

        def rename(name: str) -> str | None:
            left = ("teacher.", "layer1.", "layer2.", "layer3.", "decoder", "out.")
            return None if name.startswith(left) else f"student.{name}"

        state = read_published(path)
        refuse_other_swin(state, path, self.settings.feature_size, self.settings.window, v2=True)
        return adopt(network, state, path, rename, [f"student.{part}.*" for part in PARTS])
