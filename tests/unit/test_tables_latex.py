"""Tables in LaTeX: whatever a label holds, a document that uses booktabs, graphicx and rotating is set."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from itertools import pairwise

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemesis.report import TABLES
from nemesis.report.render import Table

SIGNS = {
    "$": r"\$", "%": r"\%", "&": r"\&", "_": r"\_", "#": r"\#", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "|": r"\textbar{}",
    "<": "$<$", "≤": r"$\le$", "×": r"$\times$", "−": "$-$", "±": r"$\pm$", "→": r"$\to$", "°": r"$^\circ$", "–": "--",
    "α": r"$\alpha$", "ω": r"$\omega$", "Δ": r"$\Delta$", "Ω": r"$\Omega$", "µ": r"$\mu$",
    "é": r"\'{e}", "e\u0301": r"\'{e}", "ü": r"\"{u}", "ç": r"\c{c}", "Å": r"\r{A}", "ế": r"\'{\^{e}}", "ß": r"\ss{}",
    "³": r"\textsuperscript{3}", "₂": r"\textsubscript{2}", "…": "...", "½": "1/2", "\u00a0": "~", "“": "``",
    "方": "[U+65B9]", "ą": "[U+0105]", "🙂": "[U+1F642]", "\n": "[U+000A]",
}  # fmt: skip


def table(label: str) -> Table:
    """A label wherever words of the configuration may stand."""
    return Table("a_b", label, label, (label, "AUROC"), [(label, "0.5"), (label, "–")], [label], pd.DataFrame(), text_columns=1)


def row(label: str) -> str:
    """The LaTeX of a label's row."""
    return next(line for line in table(label).latex().splitlines() if line.endswith(r" & 0.5 \\"))


@pytest.mark.parametrize("sign", SIGNS)
def test_a_sign_is_set_as_itself(sign):
    assert row(f"a{sign}b") == rf"a{SIGNS[sign]}b & 0.5 \\"


@given(st.text(min_size=1))
def test_any_label_is_ascii_without_commands_of_its_own(label):
    text = table(label).latex()
    assert text.isascii()
    bare = re.sub(r"\\[\\$%&_#{}]|\\[\^~]\{|\$\^\\circ\$", "", row(label))
    assert not re.search("[%#_^]", bare)
    assert bare.count("&") == 1 and bare.count("$") % 2 == 0 and bare.count("~") == label.count("\u00a0")


@pytest.mark.parametrize("label", ["[2pt] wide", "* best", "方法"])
def test_a_label_is_no_option_of_the_command_above_it(label):
    lines = table(label).latex().splitlines()
    after = [line for above, line in pairwise(lines) if above.endswith((r"\\", "rule"))]
    assert len(after) == 6
    assert not any(line.startswith(("[", "*")) for line in after)


def test_a_long_table_takes_as_many_pages_as_it_needs():
    rows = [(f"row {n}", "sentence " * (8 if n % 2 else 1)) for n in range(60)]
    whole = Table("a_b", "Title", "Caption.", ("x", "y"), rows, ["the note"], pd.DataFrame(), text_columns=2, wraps=(1,))
    text = whole.latex()
    assert re.findall(r"row \d+", text) == [name for name, _ in rows]
    pages = text.split(r"\begin{table*}")[1:]
    assert [page.count(r"row ") for page in pages] == [27, 26, 7]  # a row of 72 characters takes two lines of 36
    assert [name in text for name in ("tab:a-b}", "tab:a-b-2}", "tab:a-b-3}", "tab:a-b-4}")] == [True, True, True, False]
    assert text.count("Caption.") == 1 and text.count("Title, continued") == 2
    assert "the note" in pages[-1] and text.count("the note") == 1
    assert replace(whole, rows=rows[:20]).latex().count(r"\begin{table*}") == 1


@pytest.mark.parametrize(("characters", "environment"), [(40, "table*"), (200, "sidewaystable*")])
def test_a_wide_table_stands_in_landscape(characters, environment):
    lines = table("x" * characters).latex().splitlines()
    assert lines[0].startswith(rf"\begin{{{environment}}}") and lines[-1] == rf"\end{{{environment}}}"


def test_every_table_compiles_and_stays_on_its_page(report, tmp_path):
    engine = next(filter(None, map(shutil.which, ("pdflatex", "xelatex", "lualatex"))), None)
    if engine is None:
        pytest.skip("no LaTeX is installed")
    labels = [" ".join(SIGNS), "[2pt] wide", "* best", "方法"]
    printed = sorted(report.tables.glob("*.tex"))
    assert {path.stem for path in printed} == set(TABLES)
    body = [table(label).latex() for label in labels] + [path.read_text() for path in printed]
    start = "\\documentclass{article}\n\\usepackage{booktabs,graphicx,rotating}\n\\begin{document}\n"
    (tmp_path / "tables.tex").write_text(start + "\n\\clearpage\n".join(body) + "\n\\end{document}\n", encoding="ascii")
    command = [engine, "-halt-on-error", "-interaction=nonstopmode", "tables.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout
    log = (tmp_path / "tables.log").read_text(errors="replace")
    pages = sum(text.count(r"\begin{table*}") + text.count(r"\begin{sidewaystable*}") for text in body)
    assert f"({pages} pages" in log  # each on a page of its own
    for fault in ("Missing character", "Overfull", "Float too large"):
        assert fault not in log
