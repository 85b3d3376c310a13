"""`nemesis cost`: what the presets of the NEMESIS network cost, and which of them a paper's "GFLOPs" may have meant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nemesis.evaluation.cost import VOLUME, method_cost, superpatches
from nemesis.evaluation.counters import by_fvcore, by_torch
from nemesis.evaluation.formula import Cost, by_formula
from nemesis.markdown import pipe_table
from nemesis.methods.nemesis import Nemesis, NemesisSettings


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
