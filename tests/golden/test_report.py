"""What the report prints of a small fixed experiment.

Workflows print again when ``nemesis.report.VERSION`` is raised and only then, so changed figures need a raised version.
``NEMESIS_UPDATE_GOLDEN=1`` takes what is printed now as golden: new words at any time, new figures with a new version.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

import nemesis.report

GOLDEN = Path(__file__).parent / "report"


def _printed(report) -> dict[str, str]:
    texts = {file.name: file.read_text(encoding="utf-8") for file in report.tables.iterdir()}
    page = report.page.read_text(encoding="utf-8")
    return texts | {
        "index.html": re.sub(r"data:(image|text)/[^\"]*", r"data:\1", page)
    }  # pixels differ between platforms


def test_what_is_printed_changes_only_with_the_version(report):
    printed, version = _printed(report), f"{nemesis.report.VERSION}\n"
    golden = {file.name: file.read_text(encoding="utf-8") for file in GOLDEN.iterdir()} if GOLDEN.is_dir() else {}
    known = golden.pop("VERSION", None)
    changed = sorted(name for name in printed.keys() | golden.keys() if printed.get(name) != golden.get(name))
    figures = [name for name in changed if name.endswith(".csv") and name in golden]
    if figures and known == version:
        pytest.fail(
            f"figures changed in {', '.join(figures)}: raise nemesis.report.VERSION, then NEMESIS_UPDATE_GOLDEN=1"
        )
    if os.environ.get("NEMESIS_UPDATE_GOLDEN") == "1":
        GOLDEN.mkdir(exist_ok=True)
        for name in golden.keys() - printed.keys():
            (GOLDEN / name).unlink()
        for name, text in (printed | {"VERSION": version}).items():
            (GOLDEN / name).write_text(text, encoding="utf-8")
        return
    assert not changed, f"other words in {', '.join(changed)}: if they are meant, NEMESIS_UPDATE_GOLDEN=1"
    assert known == version, "nemesis.report.VERSION was raised: NEMESIS_UPDATE_GOLDEN=1"
