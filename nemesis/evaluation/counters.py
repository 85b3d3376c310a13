"""Multiply–accumulates (MAC) of any network, counted as it runs: by PyTorch's own counter, and by fvcore from a trace.

Counted are matrix products, convolutions and both products of attention; sums, norms and activations are not. 1 MAC = 2 FLOP:
"GFLOPs" in papers mean either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

Counter = Callable[..., int]  # by_torch or by_fvcore


def by_torch(call: Callable[..., Tensor], network: nn.Module, *inputs: Tensor) -> int:
    """MAC of ``call(network, *inputs)`` as PyTorch's own counter sees the operators that run."""
    from torch.utils.flop_counter import FlopCounterMode

    with _plain_attention(), FlopCounterMode(display=False) as counter:
        call(network, *inputs)
    return counter.get_total_flops() // 2  # it counts 2 FLOP per MAC


def by_fvcore(call: Callable[..., Tensor], network: nn.Module, *inputs: Tensor) -> int:
    """MAC of ``call(network, *inputs)`` as fvcore reads them from a trace; what it calls a flop is a MAC.

    Raises:
        ValueError: convolutions on the meta device, where a trace does not hold them.
    """
    import torch
    from fvcore.nn import FlopCountAnalysis
    from torch import nn
    from torch.overrides import TorchFunctionMode

    class NumbersForBools(TorchFunctionMode):  # a trace with ``scatter(…, False)`` in it is refused; 0 means the same
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function in (torch.scatter, torch.Tensor.scatter, torch.Tensor.scatter_):
                args = [int(value) if isinstance(value, bool) else value for value in args]
            return function(*args, **(kwargs or {}))

    class Call(nn.Module):  # a trace takes parameters from submodules only
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.train(network.training)

        def forward(self, *inputs: Tensor) -> Tensor:
            return call(self.network, *inputs)

    if inputs[0].is_meta and any(isinstance(module, nn.modules.conv._ConvNd) for module in network.modules()):
        raise ValueError("fvcore sees no convolutions on the meta device: count this network on the CPU")
    analysis = FlopCountAnalysis(Call(), inputs)
    analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_macs)
    analysis.set_op_handle("aten::baddbmm", _baddbmm_macs)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    with _plain_attention(), NumbersForBools():
        operators = analysis.by_operator()
    return round(sum(operators[name] for name in _PRODUCTS))


# fvcore's names; it counts norms and interpolation too, by their elements
_PRODUCTS = ("linear", "addmm", "mm", "bmm", "baddbmm", "matmul", "einsum", "conv", "scaled_dot_product_attention")


def _attention_macs(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    query, key, value = (value.type().sizes() for value in inputs[:3])  # (…, L, d), (…, S, d), (…, S, d_v)
    return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _baddbmm_macs(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    left, right = (value.type().sizes() for value in inputs[1:3])
    return math.prod(left) * right[-1]


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Attention as two matrix products: on CPUs PyTorch counts its fused form as nothing, and neither counter knows the fast
    path of ``nn.MultiheadAttention``."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
