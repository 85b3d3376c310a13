"""NEMESIS (arXiv 2604.01612) in its three presets: masked reconstruction of superpatches by planes and axis."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import Field, model_validator

from nemesis.config import key
from nemesis.method import Batch, Method, MethodCard, PretextLoss, Reconstruction, Settings, register
from nemesis.models.architecture import MAESIL, OFFICIAL, Architecture

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nemesis.models.keyed import Keys
    from nemesis.models.masking import Mask, Masking

# what differs from the paper, which the defaults below follow
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "official": {**OFFICIAL, "grid": 16, "plane_masking": "thinned"},
    "maesil": {**MAESIL, "grid": 16, "plane_masking": "per_slice", "axis_masking": "contiguous", "noise": (0.0,)},
}


class Preset(Settings):
    """Whose values the other keys start from."""

    preset: Literal["paper", "official", "maesil"] = key(
        "paper", "Whose description gives the values of the keys that are not set; the defaults shown are the paper's"
    )

    @model_validator(mode="before")
    @classmethod
    def _take_from_preset(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        preset = PRESETS.get(given.get("preset", "paper"), {})  # an unknown one is the field's own fault
        return {name: value for name, value in preset.items() if name in cls.model_fields} | given


class EncoderShape(Settings):
    """Shape and variant of an encoder on the NEMESIS network."""

    grid: int = key(8, "Tokens along each edge where `patch` is null (official, maesil: 16)", "tokens", ge=1)
    patch: int | None = key(None, "Edge of a token; null: the superpatch's edge / `grid`", "voxels", ge=1)
    embed_dim: int = key(768, "Width E of a token; divisible by tokens × heads", "numbers", ge=1)
    depth: int = key(6, "Blocks of the encoder", "blocks", ge=1)
    heads: int = key(8, "Attention heads", "heads", ge=1)
    tokens: int = key(8, "Learnable NEMESIS tokens of the embedding; 0: linear embedding alone (maesil)", "tokens", ge=0)
    gate: Literal["linear", "tokens"] = key("linear", "Path of the embedding that σ(α) weighs (official: tokens)")
    gate_start: float = key(0.0, "Start of α (official: 0.5)")
    streams: Literal["both", "plane", "axis", "joint"] = key(
        "both", "Attention within planes, along the axis, both, or joint over all tokens (maesil: joint)"
    )
    merge: Literal["fc", "mean"] = key("fc", "How both streams become one: fully connected, or their mean (official: mean)")
    ffn_dim: int | None = key(None, "Width of the FFN; null: 4 × the block's width (official: 1024)", "numbers", ge=1)
    ffn_residual: Literal["input", "normalised"] = key(
        "input", "What the FFN is added to: its input, or its input after the LayerNorm (official: normalised)"
    )
    dropout: float = key(0.1, "Dropout in attention and FFN", "[0, 1)", ge=0, lt=1)
    position_scale: float = key(
        0.1, "Start of the learnable scale of the positions; a larger one is read sooner by short trainings", "–", gt=0
    )


class EncoderSettings(EncoderShape, Preset):
    """Shape and variant of the NEMESIS encoder."""


class MaskedShape(EncoderShape):
    """Encoder, decoder, masking and noise of an autoencoder on the NEMESIS network."""

    decoder_dim: int | None = key(128, "Width of the decoder; null: the encoder's (official)", "numbers", ge=1)
    decoder_depth: int = key(3, "Blocks of the decoder", "blocks", ge=1)
    decoder_heads: int = key(8, "Attention heads of the decoder", "heads", ge=1)
    decoder_position_scale: Literal["shared", "copied"] = key(
        "shared", "Scale of the decoder's positions: the encoder's, or a copy with a gradient of its own (official: copied)"
    )
    plane_masking: Literal["columns", "per_slice", "thinned", "uniform"] = key(
        "columns",
        "Hidden places: the same columns in every slice, others in every slice (maesil), columns and then a share of what is "
        "left in every slice (official: thinned), or any tokens",
    )
    axis_masking: Literal["random", "contiguous"] = key("random", "Hidden slices: any, or one block (maesil)")
    plane_mask_ratio: float = key(0.5, "Share that is hidden within planes", "[0, 1)", ge=0, lt=1)
    axis_mask_ratio: float = key(
        0.5, "Share of the slices that is hidden (thinned: of each slice's columns)", "[0, 1)", ge=0, lt=1
    )
    noise: tuple[Annotated[float, Field(ge=0)], ...] = key(
        (0.0, 0.01, 0.03, 0.05),
        "Standard deviations of the input noise; one is drawn per batch (maesil: none)",
        "[0, 1] units",
        min_length=1,
    )
    recompute: bool = key(
        False, "Activation checkpointing: blocks are computed again on the way back, for less memory and the same numbers"
    )


class NemesisSettings(MaskedShape, Preset):
    """Encoder, decoder, masking and noise."""


E_ = TypeVar("E_", bound=EncoderShape)
M_ = TypeVar("M_", bound=MaskedShape)


class NemesisEncoderMethod(Method[E_]):
    """What every method on the NEMESIS encoder shares."""

    @cached_property
    def architecture(self) -> Architecture:
        """The network that the settings mean at this superpatch.

        Raises:
            ValueError: they do not fit each other.
        """
        s, edge = self.settings, self.superpatch
        if s.patch is None and edge % s.grid:
            raise ValueError(
                f"superpatch {edge} is not a multiple of {s.grid}, so `patch: null` gives no {s.grid}×{s.grid}×{s.grid} grid"
            )
        patch = s.patch or edge // s.grid
        values = s.model_dump(include={field.name for field in dataclasses.fields(Architecture)} - {"patch"})
        return Architecture(superpatch=(edge,) * 3, patch=(patch,) * 3, **values)

    def check(self) -> None:
        """See :meth:`Method.check`."""
        _ = self.architecture

    def segmenter(self, network: Any, classes: int) -> nn.Module:
        """See :meth:`Method.segmenter`: the encoder under a decoder in the style of UNETR."""
        from nemesis.models.unetr import Unetr

        return Unetr(getattr(network, "encoder", network), classes)


class MaskedAutoencoderMethod(NemesisEncoderMethod[M_]):
    """Masked reconstruction on the NEMESIS network: its pretext, features and reconstructions."""

    @cached_property
    def masking(self) -> Masking:
        """Strategy and ratios of the mask."""
        from nemesis.models.masking import Masking

        s = self.settings
        return Masking(s.plane_masking, s.axis_masking, s.plane_mask_ratio, s.axis_mask_ratio)

    def build(self) -> nn.Module:
        """See :meth:`Method.build`."""
        from nemesis.models.autoencoder import MaskedAutoencoder

        network = MaskedAutoencoder(self.architecture, self.masking)
        network.recompute(self.settings.recompute)
        return network

    def mask(self, keys: Keys) -> Mask:
        """The mask of each sample, from its key alone."""
        from nemesis.models.masking import keyed_mask

        return keyed_mask(self.architecture.grid, self.masking, keys)

    def pretext_loss(self, network: Any, batch: Batch) -> PretextLoss:
        """See :meth:`Method.pretext_loss`; ``psnr`` is over the whole superpatch, as released, ``psnr_masked`` over the
        hidden tokens."""
        mask = self.mask(batch.keys)
        std = self.settings.noise[batch.keys.batch_choice("noise level", len(self.settings.noise))]
        noise = None
        if std:  # only visible voxels reach the network: only they get noise
            patch = self.architecture.patch
            shape = (len(batch.voxels), mask.keep[0].numel(), patch[0], patch[1] * patch[2])
            noise = std * batch.keys.normal("noise", shape[1] * shape[2] * shape[3]).view(shape)
        out = network(batch.voxels, mask, noise)
        errors = {"psnr": out.full_mse, "psnr_masked": out.loss}
        return PretextLoss(out.loss, {name: -10.0 * (mse.detach() + 1e-8).log10() for name, mse in errors.items()})

    def encode(self, network: Any, voxels: Tensor) -> Tensor:
        """See :meth:`Method.encode`: the mean over the final tokens."""
        return network.encoder.embed(voxels)

    def reconstruct(self, network: Any, voxels: Tensor, keys: Keys | None) -> Reconstruction:
        """See :meth:`Method.reconstruct`."""
        from nemesis.models.masking import nothing_masked

        mask = self.mask(keys) if keys is not None else nothing_masked(network.encoder.grid, len(voxels), voxels.device)
        return Reconstruction(*network.reconstruct(voxels, mask))

    def attention(self, network: Any, voxels: Tensor) -> Mapping[str, Tensor]:
        """See :meth:`Method.attention`: of the encoder's last block."""
        from nemesis.models.attention import received

        return received(network.encoder, voxels)


@register
class Nemesis(MaskedAutoencoderMethod[NemesisSettings]):
    """Hide in-plane columns and whole slices, add noise to what is left, reconstruct the clean voxels."""

    card = MethodCard(
        name="nemesis",
        title="NEMESIS",
        paper="NEMESIS: Noise-suppressed Efficient MAE with Enhanced Superpatch Integration Strategy, arXiv 2604.01612",
        licence="MIT",
        version=1,
        pretext=True,
        reconstructs=True,
        segments=True,
        smallest_input=16,
        native_input="128³ superpatch, axes (D, H, W), HU [−175, 250] → [0, 1], native spacing",
        small={"patch": 4, "embed_dim": 64, "depth": 1, "heads": 4, "decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 4},
    )
    settings_type = NemesisSettings
