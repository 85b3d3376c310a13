"""What one superpatch costs on the NEMESIS network, by formula: multiply–accumulates (MAC) by kind of layer.

Counted are matrix products and both products of attention; sums, norms and activations are not. The counters of
:mod:`nemesis.evaluation.counters` must meet it to the last MAC.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nemesis.models.architecture import Architecture

if TYPE_CHECKING:
    from nemesis.models.masking import Masking


@dataclass(frozen=True)
class Layers:
    """MAC by kind of layer."""

    linear: int = 0  # linear layers outside the attention modules
    projections: int = 0  # in_proj and out_proj of the attention modules
    products: int = 0  # queries · keys and weights · values

    @property
    def total(self) -> int:
        """MAC of all of them."""
        return self.linear + self.projections + self.products

    def __add__(self, other: Layers) -> Layers:
        return Layers(self.linear + other.linear, self.projections + other.projections, self.products + other.products)

    def __mul__(self, times: int) -> Layers:
        return Layers(self.linear * times, self.projections * times, self.products * times)


@dataclass(frozen=True)
class Cost:
    """MAC of one superpatch through a masked autoencoder."""

    encoder: Layers
    decoder: Layers

    @property
    def total(self) -> int:
        """MAC of encoder and decoder."""
        return self.encoder.total + self.decoder.total

    @property
    def linear_layers_only(self) -> int:
        """MAC of the linear layers outside the attention modules: embedding, FFN, merge, decoder's projection and head.

        This is what counters see that hook modules: ``nn.MultiheadAttention`` uses the weights of in_proj and out_proj without
        calling a module.
        """
        return self.encoder.linear + self.decoder.linear


def by_formula(architecture: Architecture, masking: Masking | None = None, reference: bool = True) -> Cost:
    """What one superpatch costs; without a masking nothing is hidden.

    Args:
        reference: count the computation as it is described, every row of the token attention through ``proj``; False: as it
            runs here, where only the rows of the NEMESIS tokens go through it.
    """
    a, width = architecture, architecture.decoder_width
    slices, columns = a.grid[0], a.grid[1] * a.grid[2]
    shown = masking.visible(a.grid) if masking else (slices, columns)
    visible = math.prod(shown)
    encoder = _embedding(a, reference) * visible + _block(a, *shown, a.embed_dim) * a.depth
    projection = visible * a.embed_dim * width if width != a.embed_dim else 0
    head = slices * columns * width * a.patch_voxels
    return Cost(encoder, Layers(linear=projection + head) + _block(a, slices, columns, width) * a.decoder_depth)


def _embedding(a: Architecture, reference: bool) -> Layers:
    linear = Layers(linear=a.patch_voxels * a.embed_dim)
    if not a.tokens:
        return linear
    sub, rows = a.embed_dim // a.tokens, a.patch[0] + a.tokens
    embed = a.patch_voxels * sub  # p_d slices of p_h · p_w · C voxels each
    proj = (rows if reference else a.tokens) * sub**2
    return linear + Layers(linear=embed + proj) + _attention(1, rows, sub)


def _block(a: Architecture, slices: int, columns: int, width: int) -> Layers:
    streams = {
        "plane": _attention(slices, columns, width),
        "axis": _attention(columns, slices, width),
        "joint": _attention(1, slices * columns, width),
    }
    attention = streams["plane"] + streams["axis"] if a.streams == "both" else streams[a.streams]
    merge = 2 * width**2 if a.streams == "both" and a.merge == "fc" else 0
    ffn = 2 * width * (a.ffn_dim or 4 * width)
    return attention + Layers(linear=slices * columns * (merge + ffn))


def _attention(sequences: int, length: int, width: int) -> Layers:
    return Layers(projections=sequences * length * 4 * width**2, products=2 * sequences * length**2 * width)
