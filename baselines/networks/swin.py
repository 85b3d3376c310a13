"""MONAI's SwinUNETR as SuPreM (first version) and VoCo (second version) use it, and whose published weights fit which."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from monai.networks.nets.swin_unetr import SwinUNETR
from torch import Tensor

from nemesis.errors import Fault, NemesisError

SMALLEST, MULTIPLE = 64, 32  # of an edge: five halvings, and instance normalisation wants more than one voxel at the end


def swin_unetr(feature_size: int, window: int, classes: int, v2: bool, recompute: bool) -> SwinUNETR:
    """SwinUNETR of one input channel; ``v2`` puts a residual convolution before each stage, ``recompute`` saves memory."""
    return SwinUNETR(1, classes, feature_size=feature_size, window_size=window, use_v2=v2, use_checkpoint=recompute)


def refuse_other_swin(state: Mapping[str, Tensor], path: Path, feature_size: int, window: int, v2: bool) -> None:
    """See that published weights are of this SwinUNETR, before they are matched one by one.

    Args:
        state: of :func:`nemesis.models.foreign.read_published`.
        path: of the file, for messages.
        feature_size: of the network.
        window: of the network.
        v2: whether the network has the residual convolutions.

    Raises:
        NemesisError: they hold no SwinUNETR, one of the other version, or one of another feature size
            or window.
    """

    def refuse(what: str, remedy: str) -> None:
        raise NemesisError(Fault(str(path), what, remedy))

    embedding = state.get("swinViT.patch_embed.proj.weight")
    if embedding is None or embedding.ndim != 5:
        refuse("holds no weights of a SwinUNETR (no swinViT.patch_embed.proj.weight)", "Give one of the files the card names.")
        return
    has_v2 = any(name.startswith("swinViT.layers1c.") for name in state)
    if v2 and not has_v2:
        refuse(
            "is of a SwinUNETR of the first version (use_v2=False): it lacks the residual convolutions before each stage "
            "(swinViT.layers1c to layers4c; 10.58 M parameters at feature size 48), which would stay random",
            "Give weights of the second version.",
        )
    if has_v2 and not v2:
        refuse(
            "is of a SwinUNETR of the second version (use_v2=True): its residual convolutions before each stage "
            "(swinViT.layers1c to layers4c; 10.58 M parameters at feature size 48) have no place in this network, so its other "
            "weights would see what they never saw",
            "Give weights of the first version, or use `voco`.",
        )
    if len(embedding) != feature_size:
        refuse(
            f"was trained with feature size {len(embedding)}, the network has {feature_size}",
            f"Set `feature_size: {len(embedding)}`.",
        )
    bias = state.get("swinViT.layers1.0.blocks.0.attn.relative_position_bias_table")
    if (
        bias is not None and bias.ndim == 2 and len(bias) != (2 * window - 1) ** 3
    ):  # under 5 % of the parameters, yet attention would be another
        edge = (round(len(bias) ** (1 / 3)) + 1) // 2
        refuse(f"was trained with windows of {edge} tokens, the network has {window}", f"Set `window: {edge}`.")
