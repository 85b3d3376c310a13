"""One table, four ways of printing it: CSV for machines, Markdown, LaTeX (booktabs) and an HTML fragment for people."""

from __future__ import annotations

import html
import math
import textwrap
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemesis.files import write_text
from nemesis.markdown import pipe_table

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (".csv", ".md", ".tex", ".html")
MISSING = "–"
INTERVAL = " [95 % CI]"  # ends the name of a column whose figures may have one
SHORTEST_HEAD = 8  # characters; names of columns break into lines no shorter than this
UPRIGHT = 110  # characters across; a wider table would be too small to read on an upright page
WRAPPED, WRAPPED_SIGNS = "6cm", 36  # of a column of sentences in LaTeX, before the whole is made to fit
PAGE = 40  # lines of a table on one page in LaTeX
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$", "|": r"\textbar{}", "\u00a0": "~",
    "‐": "-", "⁄": "/", "–": "--", "—": "---", "“": "``", "”": "''", "„": ",,", "‘": "`", "’": "'", "•": r"\textbullet{}",
    "−": "$-$", "±": r"$\pm$", "×": r"$\times$", "·": r"$\cdot$", "÷": r"$\div$", "≤": r"$\le$", "≥": r"$\ge$", "≠": r"$\ne$",
    "≈": r"$\approx$", "∞": r"$\infty$", "→": r"$\to$", "←": r"$\leftarrow$", "↔": r"$\leftrightarrow$", "°": r"$^\circ$",
    "§": r"\S{}", "ς": r"$\varsigma$", "ο": "o", "ß": r"\ss{}", "æ": r"\ae{}", "Æ": r"\AE{}", "œ": r"\oe{}", "Œ": r"\OE{}",
    "ø": r"\o{}", "Ø": r"\O{}", "ł": r"\l{}", "Ł": r"\L{}", "ı": r"\i{}",
}  # fmt: skip
_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi psi omega "
    "Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega"
)
_LATEX |= {sign: rf"$\{name}$" for sign, name in zip("αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΥΦΨΩ", _GREEK.split(), strict=True)}
_ACCENTS = {  # as Unicode combines them with a letter
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u", "\u0307": ".", "\u0308": '"',
    "\u030a": "r", "\u030b": "H", "\u030c": "v", "\u0323": "d", "\u0327": "c", "\u0331": "b",
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
    wraps: Sequence[int] = ()  # of them those of whole sentences, which are broken into lines

    def write(self, folder: Path) -> None:
        """``<name>.csv``, ``.md``, ``.tex`` and ``.html`` in ``folder``."""
        for suffix, text in zip(SUFFIXES, (self.csv(), self.markdown(), self.latex(), self.html()), strict=True):
            write_text(folder / f"{self.name}{suffix}", text)

    def csv(self) -> str:
        """Ten significant digits, so that a processor's last bits do not show; empty where there is no figure."""
        lines = [",".join(self.data.columns)]
        lines += [",".join(_field(value) for value in row) for row in self.data.itertuples(index=False, name=None)]
        return "\n".join(lines) + "\n"

    @property
    def heads(self) -> list[str]:
        """The columns as they are printed: those speak of intervals that have one."""
        told = [any("[" in row[place] for row in self.rows) for place in range(len(self.columns))]
        return [name if drawn else name.removesuffix(INTERVAL) for name, drawn in zip(self.columns, told, strict=True)]

    def markdown(self) -> str:
        """A pipe table under its title and caption, above its notes."""
        lines = pipe_table(self.heads, self.rows, self.text_columns)
        return "\n".join([f"### {self.title}", "", self.caption, "", *lines, "", *(f"- {n}" for n in self.notes)]) + "\n"

    def latex(self) -> str:
        """A float that needs booktabs, graphicx and rotating, or several that fit their pages; in ASCII alone, so that every
        engine sets it.

        No table runs over its page: a wide one stands in landscape, and what is wider still is scaled down to the line.
        """
        if len(parts := self._pages()) > 1:
            return "\n".join(part.latex() for part in parts)
        rooms = [max([SHORTEST_HEAD, *(len(row[place]) for row in self.rows)]) for place in range(len(self.columns))]
        rooms = [min(room, WRAPPED_SIGNS) if place in self.wraps else room for place, room in enumerate(rooms)]
        heads = [_wrapped(name, room) for name, room in zip(self.heads, rooms, strict=True)]
        width = sum(2 + max(room, *map(len, lines)) for room, lines in zip(rooms, heads, strict=True))
        float_ = "sidewaystable*" if width > UPRIGHT else "table*"
        sides = ["l" if place < self.text_columns else "r" for place in range(len(self.columns))]
        layout = "".join(rf"p{{{WRAPPED}}}" if place in self.wraps else side for place, side in enumerate(sides))
        lines = [
            rf"\begin{{{float_}}}" + "[t]" * (width <= UPRIGHT), r"\centering",
            rf"\caption{{{_latex(f'{self.title}. {self.caption}'.strip())}}}",
            rf"\label{{tab:{self.name.replace('_', '-')}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{{layout}}}", r"\toprule",
            " & ".join(map(_latex_head, heads, sides)) + r" \\", r"\midrule",
        ]  # fmt: skip
        lines += map(_latex_row, self.rows)
        lines += [r"\bottomrule", r"\end{tabular}}", r"\par\medskip", r"\begin{minipage}{\linewidth}\footnotesize"]
        lines += [_latex(note) + r"\par" for note in self.notes]
        return "\n".join([*lines, r"\end{minipage}", rf"\end{{{float_}}}"]) + "\n"

    def _pages(self) -> list[Table]:
        """As many tables as the rows take pages; the notes stand under the last."""
        pages: list[list[Sequence[str]]] = [[]]
        lines = 0
        for row in self.rows:
            tall = max([1, *(math.ceil(len(row[place]) / WRAPPED_SIGNS) for place in self.wraps)])
            if pages[-1] and lines + tall > PAGE:
                pages.append([])
                lines = 0
            pages[-1].append(row)
            lines += tall
        return [
            replace(
                self,
                name=self.name if number == 1 else f"{self.name}_{number}",
                title=self.title if number == 1 else f"{self.title}, continued",
                caption=self.caption if number == 1 else "",
                rows=rows,
                notes=self.notes if number == len(pages) else [],
            )
            for number, rows in enumerate(pages, 1)
        ]

    def html(self) -> str:
        """A ``<figure>`` without styles of its own; the page brings them."""

        def cells(row: Sequence[str], tag: str) -> str:
            kinds = [' class="w"' if i in self.wraps else "" if i < self.text_columns else ' class="n"' for i in range(len(row))]
            return "<tr>" + "".join(f"<{tag}{k}>{html.escape(c)}</{tag}>" for c, k in zip(row, kinds, strict=True)) + "</tr>"

        lines = [
            f'<figure class="table" id="{self.name}">',
            f"<figcaption><strong>{html.escape(self.title)}.</strong> {html.escape(self.caption)}</figcaption>",
            '<div class="scroll"><table>', f"<thead>{cells(self.heads, 'th')}</thead>", "<tbody>",
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


def _wrapped(name: str, room: int) -> list[str]:
    """The lines of a column's name, which is not to make the column wider than its figures do."""
    interval = INTERVAL.strip()
    whole = interval.replace(" ", "\u00a0")  # which does not break
    lines = textwrap.wrap(name.replace(interval, whole), room, break_long_words=False, break_on_hyphens=False)
    return [line.replace(whole, interval) for line in lines] or [name]


def _latex_head(lines: Sequence[str], side: str) -> str:
    if len(lines) == 1:
        return "{}" + _latex(lines[0])
    return rf"\shortstack[{side}]{{" + r" \\ ".join("{}" + _latex(line) for line in lines) + "}"


def _latex_row(cells: Sequence[str]) -> str:
    line = " & ".join(map(_latex, cells)) + r" \\"
    return f"{{}}{line}" if line.startswith(("[", "*")) else line  # which the command above would take for its option


def _latex(text: str) -> str:
    return "".join(map(_latex_sign, unicodedata.normalize("NFC", text)))


def _latex_sign(sign: str) -> str:
    """As LaTeX says it; its code point in brackets where the usual fonts have none."""
    if sign in _LATEX or (sign.isascii() and sign.isprintable()):
        return _LATEX.get(sign, sign)
    kind, *codes = unicodedata.decomposition(sign).split() or [""]
    if kind.startswith("<"):  # <super> of digits, <compat> of the dots of an ellipsis, …
        plain = "".join(_latex_sign(chr(int(code, 16))) for code in codes)
        script = {"<super>": r"\textsuperscript", "<sub>": r"\textsubscript"}.get(kind)
        return f"{script}{{{plain}}}" if script else plain
    if codes and (accent := _ACCENTS.get(chr(int(codes[0], 16)))):
        return rf"\{accent}{{{_latex_sign(chr(int(kind, 16)))}}}"
    return f"[U+{ord(sign):04X}]"
