"""What a forward pass costs in multiply–accumulates (MAC), counted three independent ways: formula, PyTorch, fvcore.

Counted are matrix products, convolutions and both products of attention; sums, norms and activations are not. 1 MAC = 2 FLOP:
"GFLOPs" in papers mean either. Both counters run any network, by default on the meta device, where nothing is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nemesis.markdown import pipe_table
from nemesis.method import Batch, Method
from nemesis.methods.nemesis import Nemesis, NemesisSettings
from nemesis.models.architecture import Architecture, Size

if TYPE_CHECKING:
    from torch import Tensor, nn

    from nemesis.models.masking import Masking

VOLUME: Size = (400, 512, 512)  # voxels (D, H, W) of the scan that costs per volume are given for
FLOP_PER_MAC = 2
PASSES_PER_STEP = 3  # forward, and backward to the inputs and to the weights; one more where activations are recomputed
BATCH = 2  # superpatches that are counted together: a contrastive pretext needs a second one

Counter = Callable[..., int]  # by_torch or by_fvcore


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


@dataclass(frozen=True)
class MethodCost:
    """MAC of any method, per superpatch, and the sizes of its network."""

    encode: int  # from a superpatch to its vector, nothing masked
    pretext: int | None  # the pretext's forward pass on what the method draws; None: it has no pretext
    parameters: int
    features: int  # numbers in a vector

    def encode_volume(self, edge: int, volume: Size = VOLUME) -> int:
        """MAC of encoding all superpatches of a volume."""
        return self.encode * superpatches(edge, volume)


def superpatches(edge: int, volume: Size = VOLUME) -> int:
    """How many superpatches of this edge cover a volume, both in voxels: 64 of 128³ for the default one."""
    return math.prod(math.ceil(n / edge) for n in volume)


# ------------------------------------------------------------------------------------------------------- by formula


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


# ------------------------------------------------------------------------------------------------------- by counting


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


def method_cost(method: Method[Any], count: Counter = by_torch, device: str = "meta") -> MethodCost:
    """What a method costs per superpatch, counted on its own network.

    Args:
        count: :func:`by_torch` or :func:`by_fvcore`.
        device: ``cpu`` or ``cuda`` for a network that reads numbers on its way, which the meta device does not have, and for
            convolutions under fvcore; the forward pass is then computed.
    """
    import torch

    from nemesis.models.keyed import Keys

    def voxels(size: tuple[int, int, int]) -> Tensor:
        return torch.zeros(BATCH, 1, *size, device=device)

    features = 0

    def encoded(network: nn.Module, voxels: Tensor) -> Tensor:
        nonlocal features
        vectors = method.encode(network, voxels)
        features = int(vectors.shape[1])
        return vectors

    def pretext(network: nn.Module, voxels: Tensor) -> Tensor:
        classes = known = None
        if method.card.uses_labels:
            classes = torch.zeros_like(voxels, dtype=torch.uint8)
            known = torch.ones(BATCH, len(method.settings.classes), dtype=torch.bool, device=device)
        return method.pretext_loss(network, Batch(voxels, Keys.at(0, 0, range(BATCH), device), classes, known)).total

    network = _built(method, device)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    pretrain = None
    with torch.no_grad():
        encode = count(encoded, network.eval(), voxels((method.superpatch,) * 3)) // BATCH
        # of published weights nobody names the organs that they were pretrained on: their pretext is not to be had here
        if method.card.pretext and not (method.card.uses_labels and not method.settings.classes):
            pretrain = count(pretext, network.train(), voxels(method.draw().size)) // BATCH
    return MethodCost(encode, pretrain, parameters, features)


def counted(method: Method[Any]) -> MethodCost:
    """:func:`method_cost` on the meta device where the method allows it, else computed."""
    try:
        return method_cost(method)
    except (RuntimeError, TypeError, NotImplementedError):  # it reads numbers on its way, which the meta device does not have
        return method_cost(method, device="cpu")


def _built(method: Method[Any], device: str) -> nn.Module:
    import torch

    try:
        with torch.device(device):
            return method.build()
    except RuntimeError:  # some constructors read a tensor's value, say a schedule of drop rates
        return method.build().to(device)


# ------------------------------------------------------------------------------------------------------- the table


@dataclass(frozen=True)
class Configuration:
    """A NEMESIS network at a 128³ superpatch: patch in voxels, E, and the mask ratio r on each axis."""

    preset: str
    patch: int
    embed_dim: int
    ratio: float

    @property
    def method(self) -> Nemesis:
        """NEMESIS with these settings."""
        shape = {"preset": self.preset, "patch": self.patch, "embed_dim": self.embed_dim}
        ratios = {"plane_mask_ratio": self.ratio, "axis_mask_ratio": self.ratio}
        return Nemesis(NemesisSettings.model_validate(shape | ratios), 128)

    def __str__(self) -> str:
        return f"{self.preset}, patch {self.patch}³, E = {self.embed_dim}, r = {self.ratio:g}"


CONFIGURATIONS = tuple(
    Configuration(preset, patch, width, ratio)
    for preset in ("official", "paper", "maesil")
    for patch in (8, 16)
    for width in (384, 576, 768)
    for ratio in (0.0, 0.25, 0.5, 0.75)
)
MAIN = Configuration("official", 8, 768, 0.5)  # of the main released weights, MAE_768_0.5.pt
# what a paper may have called GFLOPs, in 10⁹
CONVENTIONS: dict[str, Callable[[Cost], float]] = {
    "GMAC": lambda cost: cost.total / 1e9,
    "GFLOP": lambda cost: 2 * cost.total / 1e9,
    "linear GMAC": lambda cost: cost.linear_layers_only / 1e9,
}


def cost_table(
    published: float,
    published_volume: float,
    counters: bool = False,
    configurations: Sequence[Configuration] = CONFIGURATIONS,
) -> str:
    """A Markdown table of what the configurations cost, and which come nearest to the published figure.

    Args:
        published: "GFLOPs" that the NEMESIS paper prints for a 128³ superpatch (Figure 5).
        published_volume: what it prints for its VAE on a full volume.
        counters: run both counters beside the formula.
    """
    methods = [configuration.method for configuration in configurations]
    costs = [by_formula(m.architecture, m.masking) for m in methods]
    values = {name: [value(cost) for cost in costs] for name, value in CONVENTIONS.items()}
    deltas = {name: [value - published for value in each] for name, each in values.items()}
    nearest = {name: min(range(len(each)), key=[abs(delta) for delta in each].__getitem__) for name, each in deltas.items()}
    n, main = superpatches(128), by_formula(MAIN.method.architecture, MAIN.method.masking)
    head = ["preset", "patch", "E", "r", "hidden", "encoder GMAC", *CONVENTIONS, "GMAC per volume"]
    head += [*(f"Δ {name}" for name in CONVENTIONS), "GMAC as run here", *(["PyTorch GMAC", "fvcore GMAC"] if counters else [])]
    rows = []
    for i, (c, m, cost) in enumerate(zip(configurations, methods, costs, strict=True)):
        row = [c.preset, f"{c.patch}³", str(c.embed_dim), f"{c.ratio:g}", f"{m.masking.hidden_share(m.architecture.grid):.4g}"]
        row += [f"{x:.1f}" for x in (cost.encoder.total / 1e9, *(each[i] for each in values.values()), n * cost.total / 1e9)]
        for name, each in deltas.items():
            delta = f"{each[i]:+.1f}".replace("-", "−")
            row.append(f"**{delta}**" if nearest[name] == i else delta)
        runs = [by_formula(m.architecture, m.masking, reference=False).total]
        runs += [method_cost(m, count).pretext or 0 for count in (by_torch, by_fvcore)] if counters else []
        rows.append(row + [f"{macs / 1e9:.1f}" for macs in runs])
    hits = "; ".join(f"{name} {values[name][i]:.1f} ({configurations[i]})" for name, i in nearest.items())
    notes = [
        "One forward pass of the masked autoencoder (encoder and decoder) on a 128³ superpatch; 1 MAC = 2 FLOP. Attention is "
        "counted; norms, activations and sums are not.",
        "r is the mask ratio on each axis, hidden the share of all tokens that is hidden. The reference computation is counted; "
        "“as run here” leaves out rows of the token attention that nothing reads.",
        "linear GMAC: linear layers outside the attention modules alone, without in_proj, out_proj and the products of "
        f"attention, as counters see it that hook modules. The main released weights ({MAIN}) cost "
        f"{main.linear_layers_only / 1e9:.1f} by it, which may be what the paper counted.",
        f"Per volume: {n} superpatches for {'×'.join(map(str, VOLUME))} voxels, without overlap.",
        f"Δ: to the {published:.1f} “GFLOPs” that the paper prints without saying for which configuration or by which "
        f"convention. Nearest, in bold: {hits}.",
        f"By the paper's own figures a whole volume costs {n} × {published:.1f} = {n * published:,.0f}, "
        f"{'more' if n * published > published_volume else 'less'} than the {published_volume:.1f} of its full-volume VAE.",
    ]
    return "\n".join([*pipe_table(head, rows, text_columns=1), "", *(f"- {note}" for note in notes)])
