"""NEMESIS (arXiv 2604.01612), the `paper` preset: masked reconstruction of superpatches by planes and axis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import Field

from nemesis.config import key
from nemesis.method import Batch, Method, MethodCard, PretextLoss, Reconstruction, Settings, register

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nemesis.models.keyed import Keys
    from nemesis.models.mae import Encoder
    from nemesis.models.masking import Mask

GRID = 8  # tokens along each edge in the paper preset, at any superpatch size


class EncoderSettings(Settings):
    """Size of the NEMESIS encoder."""

    patch: int | None = key(None, "Edge of a token in voxels; null keeps the paper's 8×8×8 grid", "voxels", ge=1)
    embed_dim: int = key(768, "Width E of a token; divisible by tokens × heads", "numbers", ge=1)
    depth: int = key(6, "Blocks of the encoder", "blocks", ge=1)
    heads: int = key(8, "Attention heads", "heads", ge=1)
    tokens: int = key(8, "Learnable NEMESIS tokens of the embedding", "tokens", ge=1)
    dropout: float = key(0.1, "Dropout in attention and FFN", "[0, 1)", ge=0, lt=1)
    position_scale: float = key(
        0.1, "Start of the learnable scale of the positions; a larger one is read sooner by short trainings", "–", gt=0
    )


class NemesisSettings(EncoderSettings):
    """Encoder, decoder, masking and noise."""

    preset: Literal["paper"] = key("paper", "Which description of NEMESIS is followed")
    decoder_dim: int = key(128, "Width of the decoder", "numbers", ge=1)
    decoder_depth: int = key(3, "Blocks of the decoder", "blocks", ge=1)
    decoder_heads: int = key(8, "Attention heads of the decoder", "heads", ge=1)
    plane_mask_ratio: float = key(0.5, "Share of the in-plane columns that is hidden", "[0, 1)", ge=0, lt=1)
    axis_mask_ratio: float = key(0.5, "Share of the slices that is hidden", "[0, 1)", ge=0, lt=1)
    axis_masking: Literal["contiguous", "random"] = key("random", "Hidden slices: one block, or any")
    noise: tuple[Annotated[float, Field(ge=0)], ...] = key(
        (0.0, 0.01, 0.03, 0.05),
        "Standard deviations ([0, 1] units) of the input noise; one is drawn per batch",
        "[0, 1] units",
        min_length=1,
    )


E_ = TypeVar("E_", bound=EncoderSettings)


class NemesisEncoderMethod(Method[E_]):
    """What every method on the NEMESIS encoder shares."""

    @property
    def patch(self) -> int:
        return self.settings.patch or self.superpatch // GRID

    def check(self) -> None:
        """See :meth:`Method.check`."""
        s = self.settings
        if s.patch is None and self.superpatch % GRID:
            raise ValueError(f"superpatch {self.superpatch} is not a multiple of {GRID}, so `patch: null` gives no 8×8×8 grid")
        if self.superpatch % self.patch:
            raise ValueError(f"superpatch {self.superpatch} is not a multiple of patch {self.patch}")
        if s.embed_dim % (s.tokens * s.heads):
            raise ValueError(f"embed_dim {s.embed_dim} is not divisible by tokens × heads = {s.tokens * s.heads}")

    def build_encoder(self) -> Encoder:
        from nemesis.models.mae import Encoder

        s = self.settings
        superpatch, patch = (self.superpatch,) * 3, (self.patch,) * 3
        return Encoder(superpatch, patch, s.embed_dim, s.depth, s.heads, s.tokens, s.dropout, s.position_scale)


@register
class Nemesis(NemesisEncoderMethod[NemesisSettings]):
    """Hide in-plane columns and whole slices, add noise to what is left, reconstruct the clean voxels."""

    card = MethodCard(
        name="nemesis",
        title="NEMESIS",
        paper="NEMESIS: Noise-suppressed Efficient MAE with Enhanced Superpatch Integration Strategy, arXiv 2604.01612",
        licence="MIT",
        version=1,
        pretext=True,
        reconstructs=True,
        smallest_input=16,
        native_input="128³ superpatch, axes (D, H, W), HU [−175, 250] → [0, 1], native spacing",
    )
    settings_type = NemesisSettings

    def check(self) -> None:
        """See :meth:`Method.check`."""
        super().check()
        if self.settings.decoder_dim % self.settings.decoder_heads:
            raise ValueError(
                f"decoder_dim {self.settings.decoder_dim} is not divisible by decoder_heads {self.settings.decoder_heads}"
            )

    def build(self) -> nn.Module:
        """See :meth:`Method.build`."""
        from nemesis.models.mae import Decoder, MaskedAutoencoder

        s = self.settings
        encoder = self.build_encoder()
        decoder = Decoder(encoder.grid, encoder.patch, s.embed_dim, s.decoder_dim, s.decoder_depth, s.decoder_heads, s.dropout)
        return MaskedAutoencoder(encoder, decoder)

    def mask(self, keys: Keys) -> Mask:
        """The mask of each sample, from its key alone."""
        from nemesis.models.masking import plane_axis_mask

        s, edge = self.settings, self.superpatch // self.patch
        scores = keys.uniform("mask", edge**3)
        return plane_axis_mask((edge,) * 3, s.plane_mask_ratio, s.axis_mask_ratio, scores, s.axis_masking)

    def pretext_loss(self, network: Any, batch: Batch) -> PretextLoss:
        """See :meth:`Method.pretext_loss`; ``psnr`` is over the whole superpatch, as released."""
        mask = self.mask(batch.keys)
        std = self.settings.noise[batch.keys.batch_choice("noise level", len(self.settings.noise))]
        noise = None
        if std:  # only visible voxels reach the network: only they get noise
            shape = (len(batch.voxels), mask.keep[0].numel(), self.patch, self.patch**2)
            noise = std * batch.keys.normal("noise", shape[1] * shape[2] * shape[3]).view(shape)
        out = network(batch.voxels, mask, noise)
        return PretextLoss(out.loss, {"psnr": -10.0 * (out.full_mse.detach() + 1e-8).log10()})

    def encode(self, network: Any, voxels: Tensor) -> Tensor:
        """See :meth:`Method.encode`: the mean over the final tokens."""
        return network.encoder.embed(voxels)

    def reconstruct(self, network: Any, voxels: Tensor, keys: Keys | None) -> Reconstruction:
        """See :meth:`Method.reconstruct`."""
        from nemesis.models.masking import nothing_masked

        mask = self.mask(keys) if keys is not None else nothing_masked(network.encoder.grid, len(voxels), voxels.device)
        return Reconstruction(*network.reconstruct(voxels, mask))
