"""Figures, each as PNG (for the page) and SVG (for papers), byte-identical when drawn again from the same numbers.

A method keeps its colour in every figure of every experiment (:mod:`nemesis.report.figures.style`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemesis.report.collect import of_part
from nemesis.report.figures.ablations import ablations_figure
from nemesis.report.figures.attention import attention_of_reference
from nemesis.report.figures.convergence import convergence_figure
from nemesis.report.figures.cost import cost_quality, counted
from nemesis.report.figures.curves import label_fractions, training_curves
from nemesis.report.figures.pretexts import pretexts_figure
from nemesis.report.figures.reconstructions import of_reference
from nemesis.report.figures.segmentation import segmentation_figure
from nemesis.report.figures.sizes import superpatch_sizes
from nemesis.report.figures.style import defaults, save
from nemesis.report.figures.sweep import sweep_figure


def draw_figures(spec: Mapping[str, Any], collected: Path, tables: Path, out: Path) -> None:
    """Job: every name of ``FIGURES`` as ``out/<name>.png`` and ``.svg``; what cannot be drawn says so in its place.

    Args:
        spec: see :func:`nemesis.report.collect.collect`.
        collected: folder that ``collect`` wrote (curves, rows and runs are read).
        tables: folder that ``print_tables`` wrote: scores and intervals are read, not computed twice.
    """
    import pandas as pd

    drawn = ("main", "label_fractions", "segmentation", "convergence", "pretraining", "ablations", "sweep")
    printed = {name: pd.read_csv(tables / f"{name}.csv") for name in drawn}
    curves, rows, runs = (pd.read_parquet(collected / f"{name}.parquet") for name in ("curves", "rows", "runs"))
    methods = of_part(spec, "methods")
    costs = counted(spec, rows, runs)
    with defaults():
        figures = {
            "reconstructions": of_reference(methods),
            "label_fractions": label_fractions(printed["label_fractions"], methods),
            "segmentation": segmentation_figure(printed["segmentation"], methods),
            "convergence": convergence_figure(printed["convergence"], methods),
            "pretexts": pretexts_figure(printed["pretraining"], methods),
            "training_curves": training_curves(curves, methods),
            "sweep": sweep_figure(printed["sweep"]),
            "ablations": ablations_figure(printed["ablations"], spec),
            "cost_quality": cost_quality(costs, printed, spec),
            "superpatch_sizes": superpatch_sizes(costs, printed["ablations"], spec),
            "attention": attention_of_reference(methods),
        }
        for name, figure in figures.items():
            save(figure, out / name)
