"""The report as one HTML file that needs nothing else: styles inline, pictures embedded."""

from __future__ import annotations

import base64
import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemesis.files import write_text
from nemesis.report import FIGURES, TABLES
from nemesis.report.collect import labels_in_order, reference_label
from nemesis.report.render import number
from nemesis.report.tables import PROTOCOLS

SIGNIFICANT = 0.05
SAVED = (".csv", ".md", ".tex")
CAPTIONS = {
    "reconstructions": "One evaluation scan through the middle of the body, radiological convention (letters: the "
    "patient's right, left, "
    "anterior, posterior, superior, inferior). Masked voxels are tinted; what the network saw is pasted into the "
    "reconstruction.",
    "label_fractions": "Frozen encoders at growing shares of labelled training patients; bars are 95 % bootstrap "
    "intervals over patients.",
    "training_curves": "Pretext loss of every run. The losses of different methods are different quantities: "
    "compare shapes, not heights.",
}


def write_page(spec: Mapping[str, Any], tables: Path, figures: Path, out: Path) -> None:
    """Job: ``out`` (index.html) from the printed tables and the figures.

    Args:
        spec: see :func:`nemesis.report.collect.collect`.
        tables: folder that ``print_tables`` wrote.
        figures: folder that ``draw_figures`` wrote.
    """
    import yaml
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("nemesis.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pictures = [
        {
            "name": name,
            "caption": CAPTIONS[name],
            "source": _inline(figures / f"{name}.png"),
        }
        for name in FIGURES
    ]
    page = environment.get_template("page.html").render(
        spec=spec,
        findings=_findings(spec, tables),
        tables=[
            {
                "fragment": (tables / f"{name}.html").read_text(encoding="utf-8"),
                "files": [(suffix[1:], name + suffix, _inline(tables / f"{name}{suffix}")) for suffix in SAVED],
            }
            for name in TABLES
        ],
        figures=pictures,
        configuration=yaml.safe_dump(spec["config"], sort_keys=False, allow_unicode=True, width=100),
    )
    write_text(out, page)


def _inline(path: Path) -> str:
    kind = "image/png" if path.suffix == ".png" else "text/plain"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _findings(spec: Mapping[str, Any], tables: Path) -> list[str]:
    """A sentence for each protocol and rival: the reference minus the rival, with its interval."""
    reference = reference_label(spec)
    if reference is None:
        return []
    with (tables / "main.csv").open(encoding="utf-8", newline="") as file:
        rows = {(row["method"], row["protocol"]): row for row in csv.DictReader(file) if row["auroc"]}
    sentences = []
    for protocol, name in PROTOCOLS.items():
        for label in labels_in_order(spec):
            row = rows.get((label, protocol))
            if label == reference or row is None or (reference, protocol) not in rows or not row["difference"]:
                continue
            ours, theirs = (number(r["auroc"], 3) for r in (rows[reference, protocol], row))
            gap = number(-float(row["difference"]), 3, sign=True)  # the table says rival minus reference
            start = f"{reference} ({ours})", f"{label} ({theirs}) by the {name}: difference in AUROC {gap}"
            if not row["difference_low"]:
                sentences.append(f"{start[0]} beside {start[1]}; too few patients for an interval.")
                continue
            low, high = (number(-float(row[f"difference_{end}"]), 3, sign=True) for end in ("high", "low"))
            p = float(row["difference_p_holm"])
            better = "better than" if float(row["difference"]) < 0 else "worse than"
            verdict = better if p < SIGNIFICANT else "not told apart from"
            chance = "p < 0.001" if p < 0.0005 else f"p {p:.3f}"
            sentences.append(f"{start[0]} is {verdict} {start[1]} (95 % interval {low} to {high}, {chance} after Holm).")
    return sentences
