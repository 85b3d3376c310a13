"""Where the streams of a NEMESIS encoder look: how much attention every token receives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nemesis.models.autoencoder import Encoder

STREAMS = {"plane": "spatial_attn", "axis": "depth_attn", "joint": "attn"}  # stream → its attention in a block


@torch.no_grad()
def received(encoder: Encoder, voxels: Tensor) -> dict[str, Tensor]:
    """Attention that each token receives in the last block, by stream, with nothing masked.

    The weights (softmax of queries · keys) that the tokens of a sequence give to a token, as the mean over them and over heads,
    times the sequence's length: 1 where all receive alike. The plane stream compares the tokens of a slice, the axis stream those
    at one place of all slices.

    Args:
        voxels: superpatches (B, C, D, H, W) in [0, 1].

    Returns:
        plane and axis, or joint: (B, T, h, w) each.
    """
    slices, height, width = encoder.grid
    block: Any = encoder.blocks[-1]
    found: dict[str, Tensor] = {}
    handles = []
    for stream, name in STREAMS.items():
        if hasattr(block, name):

            def keep(module: Any, inputs: tuple[Tensor], stream: str = stream) -> None:
                weights = module.weights(inputs[0])  # (S, heads, L, L)
                found[stream] = weights.mean(dim=(1, 2)) * weights.shape[-1]

            handles.append(getattr(block, name).register_forward_pre_hook(keep))
    try:
        encoder.embed(voxels)
    finally:
        for handle in handles:
            handle.remove()
    if "axis" in found:  # a sequence is a column there
        found["axis"] = found["axis"].view(len(voxels), height * width, slices).transpose(1, 2)
    return {stream: values.reshape(len(voxels), slices, height, width) for stream, values in found.items()}
