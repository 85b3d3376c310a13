"""One table, four ways of printing it: CSV for machines, Markdown, LaTeX (booktabs) and an HTML fragment for people."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemesis.files import write_text
from nemesis.markdown import pipe_table

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (".csv", ".md", ".tex", ".html")
MISSING = "–"
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$", "|": r"\textbar{}",
    "–": "--", "−": "$-$", "±": r"$\pm$", "×": r"$\times$", "Δ": r"$\Delta$", "≤": r"$\le$", "≥": r"$\ge$",
    "σ": r"$\sigma$",
}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """What is printed. ``rows`` are texts, one per column; ``data`` holds the same figures unrounded, for the CSV."""

    name: str  # file name without suffix, and the LaTeX label
    title: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str]
    data: pd.DataFrame
    text_columns: int  # the first columns are words, aligned left; the others are figures, aligned right

    def write(self, folder: Path) -> None:
        """``<name>.csv``, ``.md``, ``.tex`` and ``.html`` in ``folder``."""
        for suffix, text in zip(SUFFIXES, (self.csv(), self.markdown(), self.latex(), self.html()), strict=True):
            write_text(folder / f"{self.name}{suffix}", text)

    def csv(self) -> str:
        """Ten significant digits, so that a processor's last bits do not show; empty where there is no figure."""
        lines = [",".join(self.data.columns)]
        lines += [",".join(_field(value) for value in row) for row in self.data.itertuples(index=False, name=None)]
        return "\n".join(lines) + "\n"

    def markdown(self) -> str:
        """A pipe table under its title and caption, above its notes."""
        lines = pipe_table(self.columns, self.rows, self.text_columns)
        return "\n".join([f"### {self.title}", "", self.caption, "", *lines, "", *(f"- {n}" for n in self.notes)]) + "\n"

    def latex(self) -> str:
        """A float that needs booktabs and graphicx."""
        layout = "l" * self.text_columns + "r" * (len(self.columns) - self.text_columns)
        lines = [
            r"\begin{table*}[t]", r"\centering", rf"\caption{{{_latex(f'{self.title}. {self.caption}')}}}",
            rf"\label{{tab:{self.name.replace('_', '-')}}}",
            r"\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{{layout}}}", r"\toprule", " & ".join(map(_latex, self.columns)) + r" \\", r"\midrule",
        ]  # fmt: skip
        lines += [" & ".join(map(_latex, row)) + r" \\" for row in self.rows]
        lines += [r"\bottomrule", r"\end{tabular}}", r"\par\medskip", r"\begin{minipage}{\textwidth}\footnotesize"]
        lines += [_latex(note) + r"\par" for note in self.notes]
        return "\n".join([*lines, r"\end{minipage}", r"\end{table*}"]) + "\n"

    def html(self) -> str:
        """A ``<figure>`` without styles of its own; the page brings them."""

        def cells(row: Sequence[str], tag: str) -> str:
            kinds = ["" if i < self.text_columns else ' class="n"' for i in range(len(row))]
            return "<tr>" + "".join(f"<{tag}{k}>{html.escape(c)}</{tag}>" for c, k in zip(row, kinds, strict=True)) + "</tr>"

        lines = [
            f'<figure class="table" id="{self.name}">',
            f"<figcaption><strong>{html.escape(self.title)}.</strong> {html.escape(self.caption)}</figcaption>",
            '<div class="scroll"><table>', f"<thead>{cells(self.columns, 'th')}</thead>", "<tbody>",
            *(cells(row, "td") for row in self.rows), "</tbody></table></div>",
            '<ul class="notes">', *(f"<li>{html.escape(note)}</li>" for note in self.notes), "</ul>", "</figure>",
        ]  # fmt: skip
        return "\n".join(lines) + "\n"


def number(value: Any, digits: int, sign: bool = False) -> str:
    """A figure with a typographic minus; the dash where there is none."""
    if absent(value):
        return MISSING
    text = f"{float(value):{'+' if sign else ''}.{digits}f}"
    if float(text) == 0:
        text = text.replace("-", "+" if sign else "")
    return text.replace("-", "−")


def interval(row: Mapping[str, Any], name: str, digits: int, sign: bool = False) -> str:
    """``point [low, high]`` from ``name``, ``name_low`` and ``name_high``; the point alone where there is none."""
    if absent(row[name]) or absent(row[f"{name}_low"]):
        return number(row[name], digits, sign)
    low, high = (number(row[f"{name}_{end}"], digits, sign) for end in ("low", "high"))
    return f"{number(row[name], digits, sign)} [{low}, {high}]"


def absent(value: Any) -> bool:
    """No figure: None or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _field(value: Any) -> str:
    if absent(value):
        return ""
    if isinstance(value, float):
        return f"{value:.10g}"
    text = str(value)
    return '"' + text.replace('"', '""') + '"' if any(c in text for c in ',"\n') else text


def _latex(text: str) -> str:
    return "".join(_LATEX.get(c, c) for c in text)
