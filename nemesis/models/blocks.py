"""Attention and the multi-axis transformer block (MATB) of the NEMESIS paper."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def _attend(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    if q.device.type != "cpu":
        return functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    # on CPUs the fused kernel takes 2 to 7 times longer in bf16 than in fp32 at these lengths (4 to 64 tokens)
    with torch.autocast("cpu", enabled=False):
        return functional.scaled_dot_product_attention(q.float(), k.float(), v.float(), dropout_p=dropout).to(q.dtype)


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values; parameters are named as in
    ``nn.MultiheadAttention``."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        for projection in self.in_proj_weight.data.chunk(3):  # as three matrices: together they would start too small
            nn.init.xavier_uniform_(projection)

    def forward(self, x: Tensor) -> Tensor:
        """(S, L, E) → (S, L, E): each of the S sequences attends within itself."""
        sequences, length, width = x.shape
        qkv = functional.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.view(sequences, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        y = _attend(q, k, v, self.dropout if self.training else 0.0)
        return self.out_proj(y.transpose(1, 2).reshape(sequences, length, width))


class MultiAxisBlock(nn.Module):
    """MATB: attention within each plane and along the axis, merged by a fully connected layer; pre-norm, FFN of width 4E."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.spatial_attn = Attention(width, heads, dropout)
        self.depth_attn = Attention(width, heads, dropout)
        self.merge = nn.Linear(2 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.ffn = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(4 * width, width),
            nn.Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, n, E) → (B, T, n, E); n tokens in each of T slices, the l-th tokens of all slices form a column."""
        batch, slices, columns, width = x.shape
        y = self.norm1(x)
        plane = self.spatial_attn(y.flatten(0, 1)).view(batch, slices, columns, width)
        axis = self.depth_attn(y.transpose(1, 2).flatten(0, 1)).view(batch, columns, slices, width).transpose(1, 2)
        x = x + self.merge(torch.cat([axis, plane], dim=-1))
        return x + self.ffn(self.norm2(x))


def initialise(network: nn.Module) -> None:
    """Xavier weights and zero biases in every linear layer, as MAE does (He et al., arXiv 2111.06377).

    With PyTorch's own smaller start the positions stay unread for hundreds of steps: on OpenKBP at 32³ the masked error after 300
    steps was 0.059 instead of 0.041.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
