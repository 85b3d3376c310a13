"""The papers' statements that this suite can test: what claims.yaml and contradictions.yaml may hold.

A claim compares sides. A *measured* one is about what an experiment's networks do, a *counted* one about what they cost; its
sides are looked up in what was measured. An *inconsistent* one is denied by figures of the paper itself or of what was released
with it: its sides are arithmetic on published.yaml, so it is decided without any experiment.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, model_validator

from nemesis.finetuning import Arm
from nemesis.section import Section

Kind = Literal["measured", "counted", "inconsistent"]
Relation = Literal["above", "below", "within"]
Metric = Literal[
    "auroc", "f1", "dice", "psnr", "psnr_masked", "ssim", "lpips", "steps", "pretext_gmac", "pretext_gflop", "volume_gmac"
]
FILES = ("claims.yaml", "contradictions.yaml")
Place = tuple[float | str | dict[str, Any], ...]  # see nemesis.report.published.published_figures

METRICS: dict[Metric, tuple[str, int]] = {  # as printed, and with how many digits
    "auroc": ("AUROC", 3),
    "f1": ("F1", 3),
    "dice": ("mean Dice", 3),
    "psnr": ("PSNR of the whole, dB", 2),
    "psnr_masked": ("PSNR of hidden voxels, dB", 2),
    "ssim": ("SSIM of the whole", 3),
    "lpips": ("LPIPS", 3),
    "steps": ("steps until the lesser of both best validations", 0),
    "pretext_gmac": ("10⁹ MAC of the pretext's forward pass", 1),
    "pretext_gflop": ("10⁹ FLOP of the pretext's forward pass", 1),
    "volume_gmac": ("10⁹ MAC of the pretext on a whole scan", 0),
}


class Variant(Section):
    """An ablation: all as configured but for these settings; ``patch`` and ``superpatch`` as multiples of the configured edge."""

    settings: dict[str, Any] = Field(default_factory=dict)
    patch: Annotated[float, Field(gt=0)] = 1.0
    superpatch: Annotated[float, Field(gt=0)] = 1.0


class Cell(Section):
    """Of a sweep: the cell of a width and mask ratio, or every cell that the other side is not."""

    embed_dim: Literal["narrowest", "widest"] | None = None
    mask_ratio: float | None = None
    others: bool = False


class Side(Section):
    """What is compared: a method (registered name), an ablation or a cell of the sweep, under a protocol."""

    method: str | None = None
    variant: Variant | None = None
    cell: Cell | None = None
    protocol: Literal["linear", "knn", "finetune"] | None = None  # of AUROC and F1; None: linear
    arm: Arm = "pretrained"
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0  # of the training patients whose labels are used
    dataset: str | None = None  # of reconstructions; None: all

    @model_validator(mode="after")
    def _is_one_thing(self) -> Side:
        if sum(each is not None for each in (self.method, self.variant, self.cell)) != 1:
            raise ValueError("say one of method, variant, cell")
        return self


class Figures(Section):
    """One number made of published ones (or of plain numbers, which are taken as they are).

    take: the figure itself; their product, largest or mean (with ``weights``); the ``hidden`` share, 1 − ∏(1 − r), of mask ratios
    that are applied one after the other.
    """

    of: Annotated[tuple[float | Place, ...], Field(min_length=1)]
    take: Literal["figure", "product", "largest", "mean", "hidden"] = "figure"
    weights: tuple[float | Place, ...] = ()
    what: str = ""  # in words; the figure's own column, where empty


class Comparison(Section):
    """Two sides; without a right one the left is compared with the margin itself. ``published``: the paper's figure of each."""

    left: Side | Figures
    right: Side | Figures | None = None
    published: tuple[Place, ...] = ()

    @model_validator(mode="after")
    def _sides_are_published(self) -> Comparison:
        if self.published and len(self.published) != 1 + (self.right is not None):
            raise ValueError("say the published figure of each side, or of none")
        return self


class Claim(Section):
    """A statement, and what has to hold for it: of every comparison, left minus right is ``above`` or ``below`` the margin, or
    ``within`` it of zero."""

    id: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    paper: str  # as printed
    place: Annotated[str, Field(min_length=1)]  # table, figure or section
    statement: Annotated[str, Field(min_length=1)]  # in our own words
    kind: Kind
    metric: Metric | None = None
    relation: Relation = "above"
    margin: float = 0.0
    superpatch: int | None = None  # the edge that the statement is about; None: any
    comparisons: Annotated[tuple[Comparison, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _sides_fit_the_kind(self) -> Claim:
        figures = {isinstance(comparison.left, Figures) for comparison in self.comparisons}
        if figures != {self.kind == "inconsistent"}:
            raise ValueError("the left sides of an inconsistent claim, and of no other, are published figures")
        if (self.metric is None) != (self.kind == "inconsistent"):
            raise ValueError("a measured or counted claim says its metric, an inconsistent one none")
        if self.kind == "inconsistent" and any(not isinstance(c.right, Figures) for c in self.comparisons):
            raise ValueError("both sides of an inconsistent claim are published figures")
        if self.relation == "within" and self.margin <= 0:
            raise ValueError("within needs a margin above 0: the tolerance")
        return self


@cache
def load_claims() -> tuple[Claim, ...]:
    """Every claim, in the order of the files.

    Raises:
        ValueError: two claims have one id.
    """
    texts = [files("nemesis.report").joinpath(name).read_text(encoding="utf-8") for name in FILES]
    claims = tuple(Claim(**each) for text in texts for each in yaml.safe_load(text)["claims"])
    ids = [claim.id for claim in claims]
    if twice := {each for each in ids if ids.count(each) > 1}:
        raise ValueError(f"{' and '.join(FILES)}: {', '.join(sorted(twice))} stands twice")
    return claims
