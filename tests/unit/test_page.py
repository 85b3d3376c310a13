from __future__ import annotations

import base64
import csv
import re

import pytest

from nemesis.report.page import write_page


@pytest.fixture
def text(report):
    return report.page.read_text(encoding="utf-8")


def _page(report, tmp_path, spec=None, **main):
    """The page of a copy of the tables in which the columns ``main`` of every compared row are changed."""
    tables = tmp_path / "tables"
    tables.mkdir()
    for file in report.tables.iterdir():
        (tables / file.name).write_bytes(file.read_bytes())
    with (tables / "main.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if row["difference"]:
            row.update(main)
    with (tables / "main.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    write_page(spec or report.spec, tables, report.figures, tmp_path / "index.html")
    return (tmp_path / "index.html").read_text(encoding="utf-8")


def test_nothing_is_fetched_from_elsewhere(text):
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert len(sources) >= 12
    assert all(s.startswith("data:") for s in sources)
    assert not re.search(r"<script|<link(?! rel=\"icon\" href=\"data:,\")|@import|url\(", text)


def test_tables_figures_and_provenance_are_there(report, text):
    for name in ("main", "label_fractions", "reconstruction"):
        assert (report.tables / f"{name}.html").read_text() in text
        assert base64.b64encode((report.tables / f"{name}.csv").read_bytes()).decode() in text
    assert text.count("data:image/png;base64,") == 3
    assert "abcdef012345" in text
    assert all(entry["run"] in text for entry in report.spec["runs"])
    assert "superpatch: 16" in text


def test_phones_and_dark_mode(text):
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text


def test_findings_say_which_is_better(text):
    assert re.search(
        r"NEMESIS \(0\.\d{3}\) is better than Random ViT \(0\.\d{3}\) by the linear probe: difference in AUROC \+0",
        text,
    )


def test_findings_do_not_claim_what_holm_does_not_allow(report, tmp_path):
    page = _page(report, tmp_path, difference_p_holm="0.2")
    assert "is not told apart from Random ViT" in page
    assert "is better than" not in page


def test_findings_without_interval(report, tmp_path):
    page = _page(report, tmp_path, difference_low="", difference_high="", difference_p_holm="")
    assert "too few patients for an interval" in page


def test_names_are_escaped_and_a_repeat_gives_the_same_bytes(report, tmp_path, text):
    assert "Auto_encoder &amp; co" in text
    assert "Auto_encoder & co" not in text
    write_page(report.spec, report.tables, report.figures, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == report.page.read_bytes()
