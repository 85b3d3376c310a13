"""Plain MAE: an ordinary ViT that reconstructs tokens hidden anywhere (a control that the papers lack)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nemesis.config import key
from nemesis.method import Batch, Method, MethodCard, PretextLoss, Reconstruction, Settings, register

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nemesis.models.keyed import Keys
    from nemesis.models.masking import Mask


class PlainMaskedSettings(Settings):
    """Size of encoder and decoder, share of hidden tokens; the defaults are those of ViT-B with MONAI's decoder."""

    grid: int = key(8, "Tokens along each edge where `patch` is null", "tokens", ge=1)
    patch: int | None = key(None, "Edge of a token; null: the superpatch's edge / `grid`", "voxels", ge=1)
    embed_dim: int = key(768, "Width of a token; divisible by 6 and by `heads`", "numbers", ge=6)
    depth: int = key(12, "Blocks of the encoder", "blocks", ge=1)
    heads: int = key(12, "Attention heads", "heads", ge=1)
    ffn_dim: int | None = key(None, "Width of the FFN; null: 4 × the block's width", "numbers", ge=1)
    decoder_dim: int = key(384, "Width of the decoder; divisible by 6 and by `decoder_heads`", "numbers", ge=6)
    decoder_depth: int = key(4, "Blocks of the decoder", "blocks", ge=1)
    decoder_heads: int = key(12, "Attention heads of the decoder", "heads", ge=1)
    mask_ratio: float = key(0.75, "Share of the tokens that is hidden", "(0, 1)", gt=0, lt=1)
    dropout: float = key(0.0, "Dropout in embedding, attention and FFN", "[0, 1)", ge=0, lt=1)


@register
class PlainMaskedAutoEncoder(Method[PlainMaskedSettings]):
    """Hide tokens anywhere, encode the visible ones, reconstruct the voxels of the hidden ones (mean squared error)."""

    card = MethodCard(
        name="plain_mae",
        title="Plain MAE",
        paper="He et al., Masked Autoencoders Are Scalable Vision Learners, arXiv 2111.06377",
        licence="MIT (network: MONAI, Apache-2.0)",
        version=1,
        pretext=True,
        reconstructs=True,
        smallest_input=16,
        native_input="superpatch, axes (D, H, W), values in [0, 1]",
        no_gradient=("*norm_cross_attn*",),  # MONAI's blocks have it whether or not they attend to anything else
        small={"patch": 4, "embed_dim": 48, "depth": 1, "heads": 4, "decoder_dim": 24, "decoder_depth": 1, "decoder_heads": 4},
    )
    settings_type = PlainMaskedSettings

    @property
    def patch(self) -> int:
        """Edge of a token in voxels."""
        return self.settings.patch or self.superpatch // self.settings.grid

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens along (D, H, W)."""
        return (self.superpatch // self.patch,) * 3

    def check(self) -> None:
        """See :meth:`Method.check`."""
        s = self.settings
        if self.superpatch % (s.patch or s.grid):
            what = f"patch {s.patch}" if s.patch else f"{s.grid}, so `patch: null` gives no grid of {s.grid}³ tokens"
            raise ValueError(f"superpatch {self.superpatch} is not a multiple of {what}")
        if self.superpatch == self.patch:
            raise ValueError(f"superpatch {self.superpatch} is a single token of {self.patch}³: there is nothing to hide")
        for name, width, heads in (("embed_dim", s.embed_dim, s.heads), ("decoder_dim", s.decoder_dim, s.decoder_heads)):
            if width % 6 or width % heads:  # 6: sine and cosine along each of three axes
                raise ValueError(f"{name} {width} is not divisible by 6 and by its {heads} heads")

    def build(self) -> nn.Module:
        """See :meth:`Method.build`."""
        import warnings

        from baselines.networks.plain_mae import KeyedMaskedAutoEncoder

        s = self.settings
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.meshgrid")  # MONAI's call, which torch wants more explicit
            return KeyedMaskedAutoEncoder(
                in_channels=1,
                img_size=self.superpatch,
                patch_size=self.patch,
                hidden_size=s.embed_dim,
                mlp_dim=s.ffn_dim or 4 * s.embed_dim,
                num_layers=s.depth,
                num_heads=s.heads,
                masking_ratio=s.mask_ratio,
                decoder_hidden_size=s.decoder_dim,
                decoder_mlp_dim=s.ffn_dim or 4 * s.decoder_dim,
                decoder_num_layers=s.decoder_depth,
                decoder_num_heads=s.decoder_heads,
                dropout_rate=s.dropout,
            )

    def mask(self, keys: Keys) -> Mask:
        """The mask of each sample, from its key alone."""
        from nemesis.models.masking import Masking, keyed_mask

        return keyed_mask(self.grid, Masking("uniform", plane_ratio=self.settings.mask_ratio, axis_ratio=0.0), keys)

    def pretext_loss(self, network: Any, batch: Batch) -> PretextLoss:
        """See :meth:`Method.pretext_loss`; ``psnr`` is over the whole superpatch, ``psnr_masked`` over hidden tokens."""
        from nemesis.models.autoencoder import squared_error
        from nemesis.models.embedding import patchify

        mask = self.mask(batch.keys)
        prediction = network(batch.voxels, mask.keep.flatten(1))
        errors = squared_error(prediction, patchify(batch.voxels, (self.patch,) * 3).flatten(2))
        n_hidden = errors.numel() - mask.keep.numel()  # every sample hides equally many
        loss = (errors * mask.hidden).sum() / n_hidden
        named = {"psnr": errors.mean(), "psnr_masked": loss}
        return PretextLoss(loss, {name: -10.0 * (mse.detach() + 1e-8).log10() for name, mse in named.items()})

    def encode(self, network: Any, voxels: Tensor) -> Tensor:
        """See :meth:`Method.encode`: the mean over the final tokens, without the class token, which no loss speaks to."""
        from nemesis.models.masking import nothing_masked

        keep = nothing_masked(self.grid, len(voxels), voxels.device).keep.flatten(1)
        return network.tokens(voxels, keep)[:, 1:].mean(dim=1)

    def reconstruct(self, network: Any, voxels: Tensor, keys: Keys | None) -> Reconstruction:
        """See :meth:`Method.reconstruct`."""
        from nemesis.models.embedding import unpatchify
        from nemesis.models.masking import nothing_masked

        mask = self.mask(keys) if keys is not None else nothing_masked(self.grid, len(voxels), voxels.device)
        prediction = network(voxels, mask.keep.flatten(1)).float()
        hidden = mask.hidden[:, :, None].expand_as(prediction)
        patch = (self.patch,) * 3
        return Reconstruction(unpatchify(prediction, patch, self.grid), unpatchify(hidden, patch, self.grid))
