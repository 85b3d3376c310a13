"""The report as one HTML file that needs nothing else: styles inline, pictures and printed tables embedded."""

from __future__ import annotations

import base64
import csv
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemesis.files import file_sha256, write_text
from nemesis.report.collect import of_part, reference_label
from nemesis.report.figures.style import DPI
from nemesis.report.render import SUFFIXES, interval, number
from nemesis.report.tables import PROTOCOLS
from nemesis.report.verdicts import CONTRADICTED, INCONSISTENT, SUPPORTED, UNDECIDABLE
from nemesis.runs import AS_CONFIGURED

if TYPE_CHECKING:
    from jinja2 import Environment

SIGNIFICANT = 0.05  # of p after Holm
VERDICTS = ("is better than", "is worse than", "is not told apart from", "has too few patients for an interval beside")
PIXELS_PER_INCH = 110  # of the page, at which the figures' letters are as tall as the tables'
SAVED = (".csv", ".md", ".tex")
MEDIA = {".png": "image/png", ".svg": "image/svg+xml"}
PARTS = {"methods": "method", "sweep": "sweep", "ablations": "ablation"}
CAPTIONS = {
    "label_fractions": "Encoders at growing shares of labelled training patients. Bars, where there are patients enough "
    "for them, are 95 % intervals over patients; where they overlap the methods may still differ, since all were "
    "tested on the same patients.",
    "ablations": "Variants beside the method as configured (dashed; grey: its interval, where there is one). A variant of "
    "another superpatch size is scored on other superpatches, and one that hides another share has another task: its PSNR is "
    "not comparable.",
    "sweep": "The sweep. Of a grid every cell with its AUROC on test patients; of an adaptive search every trial with the last "
    "score on inner validation that the search saw.",
    "reconstructions": "One evaluation scan through the middle of the body, radiological convention (letters: the patient's "
    "right, left, anterior, posterior, superior, inferior). Masked voxels are tinted; what the network saw is pasted into the "
    "reconstruction.",
    "cost_quality": "Left: quality against the cost of encoding a whole scan, cut into superpatches without overlap: so the "
    "costs of superpatch sizes compare, but not their AUROC, which is on other superpatches. Small marks are trained for as many "
    "steps as their own table says; variants that cost the same as configured are left out. Right: one superpatch to its vector "
    "with nothing masked, and the forward pass of the pretext, decoder included; of a method that draws whole scans (VoCo), of "
    "all crops of one scan.",
    "superpatch_sizes": "The ablations that vary the size of the superpatch (filled: as configured), with the intervals of their "
    "table. Each size is scored on superpatches of its own, and a larger one hides larger holes: the cost of encoding a whole "
    "scan compares, AUROC and PSNR only by and large.",
    "attention": "One superpatch of the scan above, and how much attention each of its tokens receives in the last block of the "
    "encoder, nothing masked: the mean over heads and over the tokens that give it, times their number. The plane stream looks "
    "within an axial slice, the axis stream along the body's axis.",
    "segmentation": "Networks fine-tuned to segment, with the intervals of the table. Filled: from the weights that the method "
    "gives; hollow: the same network from random ones.",
    "convergence": "What the inner validation (training patients who do not train) said while networks were fine-tuned. Filled: "
    "from the weights that the method gives; hollow: the same network from random ones. No test patient has a part in it.",
    "pretexts": "How well networks do what their pretext asks, on fixed samples of held-out patients, before pretraining and "
    "after it. Each method hides, crops or encodes in its own way: compare hollow with filled, not method with method.",
    "training_curves": "Pretext loss of every run of the methods. The losses of different methods are different quantities: "
    "compare shapes, not heights.",
}


@dataclass(frozen=True)
class Section:
    """Tables, and the figures that draw them."""

    title: str
    tables: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()

    @property
    def anchor(self) -> str:
        """Where links lead to."""
        return f"section-{self.title.lower().replace(' ', '-')}"


SECTIONS = (  # in the order of reading
    Section("Data", ("data",)),
    Section("Main result", ("main",)),
    Section("What the papers say", ("claims",)),
    Section("Fewer labels", ("label_fractions",), ("label_fractions",)),
    Section("Fine-tuning", ("segmentation", "segmentation_organs", "controls", "convergence"), ("segmentation", "convergence")),
    Section("Ablations", ("ablations",), ("ablations",)),
    Section("Sweep", ("sweep",), ("sweep",)),
    Section("Reconstruction", ("maesil_reconstruction", "maesil_datasets", "reconstruction"), ("reconstructions", "attention")),
    Section("Peeking", ("peeking",)),
    Section("Cost", ("cost",), ("cost_quality", "superpatch_sizes")),
    Section("Pretraining", ("pretraining",), ("pretexts", "training_curves")),
)


def write_page(spec: Mapping[str, Any], tables: Path, figures: Path, out: Path) -> None:
    """Job: ``out`` (index.html) from the printed tables and the figures.

    Args:
        spec: see :func:`nemesis.report.collect.collect`.
        tables: folder that ``print_tables`` wrote.
        figures: folder that ``draw_figures`` wrote.
    """
    import yaml

    printed = [tables / f"{name}{suffix}" for section in SECTIONS for name in section.tables for suffix in SUFFIXES]
    template = environment().get_template("page.html")
    page = template.render(
        spec=spec,
        findings=[*_methods(spec, tables), *_ablations(spec, tables), *_sweep(spec, tables), *_claims(spec, tables)],
        sections=[
            {
                "anchor": section.anchor,
                "title": section.title,
                "tables": [_table(tables / name) for name in section.tables],
                "figures": [_figure(figures / name) for name in section.figures],
            }
            for section in SECTIONS
        ],
        runs=[{**entry, "part": PARTS[entry["part"]]} for entry in spec["runs"]],
        hashes={path.name: file_sha256(path) for path in printed},
        configuration=yaml.safe_dump(spec["config"], sort_keys=False, allow_unicode=True, width=100),
    )
    write_text(out, page)


def environment() -> Environment:
    """Where the templates of pages are found, with every name in them escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("nemesis.report", ".")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _table(stem: Path) -> dict[str, Any]:
    files = [(suffix[1:], stem.name + suffix, _inline(stem.with_suffix(suffix))) for suffix in SAVED]
    return {"fragment": stem.with_suffix(".html").read_text(encoding="utf-8"), "files": files}


def shown_width(picture: bytes) -> int:
    """Pixels that a PNG of a figure takes across on a page."""
    return int.from_bytes(picture[16:20]) * PIXELS_PER_INCH // DPI  # its header holds its width


def _figure(stem: Path) -> dict[str, Any]:
    picture, drawing = (stem.with_suffix(suffix) for suffix in (".png", ".svg"))
    return {
        "name": stem.name,
        "caption": CAPTIONS[stem.name],
        "width": shown_width(picture.read_bytes()),
        "picture": _inline(picture),
        "drawing": _inline(drawing),
    }


def _inline(path: Path) -> str:
    kind = MEDIA.get(path.suffix, "text/plain")
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


# --------------------------------------------------------------------------------------------------------- findings


def _methods(spec: Mapping[str, Any], tables: Path) -> Iterator[str]:
    """A sentence for each protocol: the rivals that the reference beats, those that beat it, and those not told apart."""
    reference = reference_label(of_part(spec, "methods"))
    rows = [row for row in _rows(tables / "main.csv") if row["auroc"]]
    for protocol, name in PROTOCOLS.items():
        here = {row["method"]: row for row in rows if row["protocol"] == protocol}
        if reference not in here:
            continue
        own, alone = here[reference], []
        told: dict[str, list[str]] = {verdict: [] for verdict in VERDICTS}
        for label, row in here.items():
            if row["difference"]:
                told[_verdict(row)].append(f"{label} ({number(row['auroc'], 3)}; {_difference(row)})")
                alone += [label] if min(int(r["seeds"]) for r in (row, own)) == 1 else []
        if not any(told.values()):
            continue
        start = "After fine-tuning" if protocol == "finetune" else f"By the {name}"
        verdicts = "; ".join(f"{verdict} {', '.join(others)}" for verdict, others in told.items() if others)
        seeds = f" One seed, whose chance is in no interval: {', '.join(alone)}." if alone else ""
        yield f"{start}, {reference} (AUROC {number(own['auroc'], 3)}) {verdicts}.{seeds}"


def _verdict(row: Mapping[str, str]) -> str:
    """One of ``VERDICTS``; the table says rival minus reference."""
    better, worse, same, unknown = VERDICTS
    if not row["difference_low"]:
        return unknown
    if float(row["difference_p_holm"]) >= SIGNIFICANT:
        return same
    return better if float(row["difference"]) < 0 else worse


def _difference(row: Mapping[str, str]) -> str:
    """The reference minus the rival, with its interval."""
    difference = _reversed(row, "difference")
    if not row["difference_low"]:
        return difference
    return f"{difference} [{_reversed(row, 'difference_high')}, {_reversed(row, 'difference_low')}], {_chance(row)}"


def _ablations(spec: Mapping[str, Any], tables: Path) -> Iterator[str]:
    """Which variants differ from the method as configured."""
    rows = [row for row in _rows(tables / "ablations.csv") if row["difference_p_holm"]]
    if rows:
        apart = [row for row in rows if float(row["difference_p_holm"]) < SIGNIFICANT]
        told = [f"{row['variant']} ({number(row['difference'], 3, sign=True)}, {_chance(row)})" for row in apart]
        start = f"Of the {len(rows)} ablations of {spec['config']['ablations']['method']} that compare with it {AS_CONFIGURED}"
        yield f"{start}, AUROC tells apart (p < {SIGNIFICANT} after Holm): {', '.join(told) or 'none'}."


def _sweep(spec: Mapping[str, Any], tables: Path) -> Iterator[str]:
    """The cell or trial that inner validation chooses."""
    for row in _rows(tables / "sweep.csv"):
        if row["chosen_by_validation"] == "True" and row["auroc"]:
            place = f"embedding width {row['embed_dim']} and mask ratio {row['mask_ratio']}"
            figure = interval({name: value or None for name, value in row.items()}, "auroc", 3)
            end = "a little flattered by the choice; the table's notes say what choosing is worth"
            yield f"In the sweep inner validation chooses {place}: AUROC {figure} on test patients, {end}."


def _claims(spec: Mapping[str, Any], tables: Path) -> Iterator[str]:
    """How many of the papers' statements held, and of which setting that speaks."""
    rows = [row for row in _rows(tables / "claims.csv") if row["kind"] != "inconsistent"]
    verdicts = Counter({row["claim"]: row["verdict"] for row in rows}.values())
    lacking = {row["claim"] for row in rows if row["verdict"] == UNDECIDABLE and not row["difference"]}
    told = ", ".join(f"{verdicts[each]} {each}" for each in (SUPPORTED, CONTRADICTED, UNDECIDABLE))
    why = f" ({len(lacking)} of them for want of a side that was not measured)" if lacking else ""
    setting = f"{', '.join(spec['datasets'])} with superpatches of {spec['config']['superpatch']}³"
    denied = len({row["claim"] for row in _rows(tables / "claims.csv") if row["verdict"] == INCONSISTENT})
    yield (
        f"Of {sum(verdicts.values())} statements of the papers that measuring can test, {told}{why}. This speaks of {setting} "
        f"alone. {denied} more are denied by the papers' own figures."
    )


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _reversed(row: Mapping[str, str], name: str) -> str:
    return number(-float(row[name]), 3, sign=True)  # the table says rival minus reference


def _chance(row: Mapping[str, str]) -> str:
    p = float(row["difference_p_holm"])
    return "p < 0.001" if p < 0.0005 else f"p {p:.3f}"
