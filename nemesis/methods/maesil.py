"""MAESIL: NEMESIS's predecessor, an ordinary ViT under a mask of places in every plane and a block of slices."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from nemesis.config import key
from nemesis.method import MethodCard, register
from nemesis.methods.nemesis import MaskedAutoencoderMethod, MaskedShape


class MaesilSettings(MaskedShape):
    """Encoder, decoder and masking; the defaults are what ``preset: maesil`` means to NEMESIS."""

    grid: int = key(16, "Tokens along each edge where `patch` is null", "tokens", ge=1)
    tokens: int = key(0, "Learnable tokens of the embedding; 0: linear embedding alone", "tokens", ge=0)
    streams: Literal["both", "plane", "axis", "joint"] = key(
        "joint", "Attention over all tokens jointly; otherwise as NEMESIS: within planes, along the axis, or both"
    )
    plane_masking: Literal["columns", "per_slice", "thinned", "uniform"] = key(
        "per_slice", "Hidden places: others in every slice; otherwise as NEMESIS"
    )
    axis_masking: Literal["random", "contiguous"] = key("contiguous", "Hidden slices: one block, or any")
    noise: tuple[Annotated[float, Field(ge=0)], ...] = key(
        (0.0,), "Standard deviations of the input noise; one is drawn per batch", "[0, 1] units", min_length=1
    )


@register
class Maesil(MaskedAutoencoderMethod[MaesilSettings]):
    """Hide places in every plane and one block of slices, reconstruct what is hidden.

    The paper says both "75 % of each plane and 50 % of the slices", which hides 87.5 %, and "75 % in total"; the defaults hide
    75 % in total, and ``plane_mask_ratio: 0.75`` is the other reading.
    """

    card = MethodCard(
        name="maesil",
        title="MAESIL",
        paper="MAESIL: Masked Autoencoder for Enhanced Self-supervised Medical Image Learning",
        licence="MIT",
        version=1,
        pretext=True,
        reconstructs=True,
        segments=True,
        smallest_input=16,
        native_input="128³ superpatch, axes (D, H, W), HU [−175, 250] → [0, 1], native spacing",
        small={"patch": 4, "embed_dim": 64, "depth": 1, "heads": 4, "decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 4},
    )
    settings_type = MaesilSettings
