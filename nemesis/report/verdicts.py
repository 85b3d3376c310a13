"""One rule for every claim: where the interval of a difference lies tells the verdict.

The difference is left minus right; of counted and of published figures the interval is the figure itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nemesis.evaluation.statistics import Estimate
from nemesis.report.claims import Claim, Figures, Place, Relation
from nemesis.report.published import published_figures

SUPPORTED, CONTRADICTED, UNDECIDABLE = "supported", "contradicted", "not decidable"
INCONSISTENT, CONSISTENT = "inconsistent", "consistent"  # of a paper's own figures
VERDICTS = (SUPPORTED, CONTRADICTED, UNDECIDABLE, INCONSISTENT, CONSISTENT)


@dataclass(frozen=True)
class Compared:
    """A comparison of a claim: the names of both sides, their difference, and where one was not measured what is missing."""

    left: str
    right: str
    difference: Estimate | None
    missing: str = ""
    leakage: str = ""
    published: float | None = None  # the paper's own difference
    told: str = ""  # the figures of both sides, where they are more telling than their difference


def verdict(relation: Relation, margin: float, low: float | None, high: float | None) -> str:
    """Of one comparison, whose 95 % interval is from ``low`` to ``high``; None where there is none.

    Args:
        relation: ``above``: the claim is that the difference is more than the margin; ``below``: less; ``within``: that it is no
            further from zero than the margin.
    """
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return UNDECIDABLE
    if relation == "within":
        holds, fails = -margin <= low and high <= margin, low > margin or high < -margin
    elif relation == "above":
        holds, fails = low > margin, high <= margin
    else:
        holds, fails = high < margin, low >= margin
    return SUPPORTED if holds else CONTRADICTED if fails else UNDECIDABLE


def verdict_of(claim: Claim, compared: Compared) -> str:
    """Of one comparison of a claim."""
    gap = compared.difference
    return UNDECIDABLE if gap is None else verdict(claim.relation, claim.margin, gap.low, gap.high)


def together(claim: Claim, compared: Sequence[Compared]) -> str:
    """Of all comparisons of a claim: contradicted if one is, supported if all are, else not decidable."""
    found = {verdict_of(claim, each) for each in compared}
    told = CONTRADICTED if CONTRADICTED in found else SUPPORTED if found == {SUPPORTED} else UNDECIDABLE
    if claim.kind == "inconsistent":
        return INCONSISTENT if told == CONTRADICTED else CONSISTENT
    return told


def exactly(value: float) -> Estimate:
    """A figure without chance: counted or published."""
    return Estimate(value, value, value, (), n_patients=0, n_superpatches=0, n_cells=0, p=None, note="", training=False)


def value_of(figures: Figures) -> float:
    """The number that published figures make.

    Raises:
        KeyError: there is no such figure.
    """
    numbers = np.array(_numbers(figures.of))
    if figures.take == "product":
        return float(np.prod(numbers))
    if figures.take == "largest":
        return float(numbers.max())
    if figures.take == "mean":
        return float(np.average(numbers, weights=_numbers(figures.weights) if figures.weights else None))
    if figures.take == "hidden":
        return float(1 - np.prod(1 - numbers))
    (figure,) = numbers
    return float(figure)


def own_figures(claim: Claim) -> list[Compared]:
    """The comparisons of an inconsistent claim: what the paper's figures say of one another."""
    found = []
    for comparison in claim.comparisons:
        left, right = comparison.left, comparison.right
        assert isinstance(left, Figures) and isinstance(right, Figures)  # as the claim's own check says
        difference = value_of(left) - value_of(right)
        found.append(Compared(left.what, right.what, exactly(difference), told=f"{_told(left)} against {_told(right)}"))
    return found


def _numbers(of: Sequence[float | Place]) -> list[float]:
    return [number for each in of for number in (published_figures(each) if isinstance(each, tuple) else [float(each)])]


def _told(figures: Figures) -> str:
    """The number, in words what it is, and what it is made of where that is few."""
    parts = [f"{number:g}" for number in _numbers(figures.of)]
    made = {"product": " × ".join(parts), "mean": f"mean of {', '.join(parts)}", "largest": f"largest of {', '.join(parts)}"}
    how = made.get(figures.take)
    return f"{figures.what} {value_of(figures):.4g}" + (f" ({how})" if how else "")
