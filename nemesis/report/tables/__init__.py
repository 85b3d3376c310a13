"""The printed tables: pure functions of what :mod:`nemesis.report.collect` gathered, and of the papers' figures.

    data                    NEMESIS and MAESIL Table I: who is pretrained on, who is evaluated on
    main                    NEMESIS Table II: linear probe, k-NN and fine-tuned networks at the largest share of labels
    label_fractions         NEMESIS Table III: AUROC at every share of labels
    segmentation            Dice, HD95 and surface Dice of fine-tuned networks
    segmentation_organs     the same, organ by organ
    controls                pretrained networks beside the same from scratch, and from scratch at matched compute
    convergence             what the inner validation said at every look of fine-tuning, pretrained and from scratch
    peeking                 what choosing an epoch on test patients is worth: the only table with a figure chosen so
    pretraining             what every network was pretrained for and by, and what its pretext reaches on held-out patients
    ablations               NEMESIS Table IV: variants of one method
    sweep                   NEMESIS Table V: embedding width × mask ratio
    maesil_reconstruction   MAESIL Table II: PSNR and SSIM of the whole
    maesil_datasets         MAESIL Table III: PSNR by dataset
    reconstruction          PSNR and SSIM by region, beside what filling with the visible mean reaches
    claims                  the papers' statements, each with the verdict of what was measured
    cost                    parameters, MAC, FLOP; hours, throughput and memory, which no other table has: clocks do not repeat

Scores and intervals are those of :mod:`nemesis.evaluation.statistics`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemesis.report.published import load_published
from nemesis.report.render import Table
from nemesis.report.tables.ablations import ablations_table
from nemesis.report.tables.claims import claims_table
from nemesis.report.tables.controls import controls_table
from nemesis.report.tables.convergence import convergence_table
from nemesis.report.tables.cost import cost_table
from nemesis.report.tables.data import data_table
from nemesis.report.tables.frozen import fractions_table, main_table
from nemesis.report.tables.maesil import maesil_datasets_table, maesil_table
from nemesis.report.tables.measured import PROTOCOLS, Measured, read_measured
from nemesis.report.tables.peeking import peeking_table
from nemesis.report.tables.pretraining import pretraining_table
from nemesis.report.tables.reconstruction import reconstruction_table
from nemesis.report.tables.segmentation import segmentation_organs_table, segmentation_table
from nemesis.report.tables.sweep import sweep_table

__all__ = ["PROTOCOLS", "Measured", "load_published", "print_tables", "read_measured", "tables"]


def print_tables(spec: Mapping[str, Any], collected: Path, out: Path) -> None:
    """Job: every name of ``TABLES`` as CSV, Markdown, LaTeX and HTML in ``out``.

    Args:
        spec: see :func:`nemesis.report.collect.collect`.
        collected: folder that ``collect`` wrote.
    """
    for table in tables(read_measured(spec, collected)):
        table.write(out)


def tables(measured: Measured) -> list[Table]:
    """The tables, in the order of ``TABLES``."""
    return [
        data_table(measured),
        main_table(measured),
        fractions_table(measured),
        pretraining_table(measured),
        segmentation_table(measured),
        segmentation_organs_table(measured),
        controls_table(measured),
        convergence_table(measured),
        peeking_table(measured),
        ablations_table(measured),
        sweep_table(measured),
        maesil_table(measured),
        maesil_datasets_table(measured),
        reconstruction_table(measured),
        claims_table(measured),
        cost_table(measured),
    ]
