from __future__ import annotations

import base64
import csv
import hashlib
import re
from itertools import chain

import pytest

from nemesis.report import FIGURES, TABLES
from nemesis.report.page import SECTIONS, write_page


@pytest.fixture
def text(report):
    return report.page.read_text(encoding="utf-8")


def _page(report, tmp_path, table="main", **changed):
    """The page of a copy of the tables in which columns of every row with a difference are changed."""
    tables = tmp_path / "tables"
    tables.mkdir()
    for file in report.tables.iterdir():
        (tables / file.name).write_bytes(file.read_bytes())
    with (tables / f"{table}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if row["difference"]:
            row.update(changed)
    with (tables / f"{table}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    write_page(report.spec, tables, report.figures, tmp_path / "index.html")
    return (tmp_path / "index.html").read_text(encoding="utf-8")


def test_nothing_is_fetched_from_elsewhere(text):
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert len(sources) >= 3 * len(TABLES) + 2 * len(FIGURES)
    assert all(s.startswith(("data:", "#")) for s in sources)
    assert not re.search(r"<script|<link(?! rel=\"icon\" href=\"data:,\")|@import|url\(", text)


def test_every_table_and_every_figure_stands_on_the_page_once(report, text):
    assert sorted(chain.from_iterable(section.tables for section in SECTIONS)) == sorted(TABLES)
    assert sorted(chain.from_iterable(section.figures for section in SECTIONS)) == sorted(FIGURES)
    for name in TABLES:
        assert text.count((report.tables / f"{name}.html").read_text()) == 1
        assert text.count(base64.b64encode((report.tables / f"{name}.csv").read_bytes()).decode()) == 1
    for name in FIGURES:
        for suffix, kind in ((".png", "image/png"), (".svg", "image/svg+xml")):
            content = base64.b64encode((report.figures / f"{name}{suffix}").read_bytes()).decode()
            assert text.count(f'"data:{kind};base64,{content}"') == 1


def test_findings_come_first_and_a_figure_follows_its_table(text):
    places = ['class="findings"', "<nav", 'id="data"', 'id="main"', 'id="label_fractions"', 'id="figure-label_fractions"']
    places += ['id="ablations"', 'id="figure-ablations"', 'id="sweep"', 'id="figure-sweep"', 'id="reconstruction"']
    places += ['id="figure-reconstructions"', 'id="figure-cost_quality"', 'id="figure-training_curves"', "abcdef012345"]
    found = [text.rindex(place) for place in places]
    assert found == sorted(found)


def test_links_of_the_contents_lead_somewhere(text):
    names = re.findall(r' id="([^"]*)"', text)
    assert len(set(names)) == len(names)
    links = re.findall(r'href="#([^"]*)"', text)
    assert len(links) == len(SECTIONS) + 1
    assert set(links) <= set(names)


def test_pictures_are_no_wider_than_their_letters_allow(report, text):
    shown = re.search(r'<img class="picture" width="(\d+)"[^>]*src="data:image/png;base64,([^"]*)"', text)
    header = base64.b64decode(shown[2][:64])
    assert int(shown[1]) == int.from_bytes(header[16:20]) * 110 // 160


def test_what_made_the_page_is_told(report, text):
    assert "abcdef012345" in text
    for entry in report.spec["runs"]:
        assert re.search(rf"<td>{re.escape(entry['label'].replace('&', '&amp;'))}</td>.*{entry['run']}", text)
    assert "superpatch: 16" in text
    for name in TABLES:
        for suffix in ("csv", "md", "tex", "html"):
            digest = hashlib.sha256((report.tables / f"{name}.{suffix}").read_bytes()).hexdigest()
            assert f"<td>{name}.{suffix}</td><td><code>{digest}</code></td>" in text


def test_phones_and_dark_mode(text):
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text


def test_findings_say_which_is_better(text):
    found = re.search(r"By the linear probe, NEMESIS \(AUROC 0\.\d{3}\) is better than ([^;]*; .*?)\. One seed", text)
    assert re.match(r"Auto.*? \(0\.\d{3}; \+0\.\d{3} \[", found[1]) and "Random ViT (0." in found[1]


def test_findings_do_not_claim_what_holm_does_not_allow(report, tmp_path):
    page = _page(report, tmp_path, difference_p_holm="0.2")
    assert re.search(r"NEMESIS \(AUROC 0\.\d{3}\) is not told apart from .*Random ViT", page)
    assert "is better than" not in page


def test_findings_without_interval(report, tmp_path):
    page = _page(report, tmp_path, difference_low="", difference_high="", difference_p_holm="")
    assert "too few patients for an interval" in page


def test_findings_name_the_ablations_that_are_told_apart(report, tmp_path, text):
    with (report.tables / "ablations.csv").open(newline="") as file:
        p = {row["variant"]: float(row["difference_p_holm"]) for row in csv.DictReader(file) if row["difference_p_holm"]}
    apart = re.search(r"Of the 3 ablations of NEMESIS that compare with it as configured, AUROC tells apart .*", text)[0]
    assert {name for name in p if name in apart} == {name for name, chance in p.items() if chance < 0.05} != set(p)
    assert "after Holm): none." in _page(report, tmp_path, "ablations", difference_p_holm="0.2")


def test_findings_say_which_cell_inner_validation_chooses(report, text):
    with (report.tables / "sweep.csv").open(newline="") as file:
        (row,) = (row for row in csv.DictReader(file) if row["chosen_by_validation"] == "True")
    start = f"chooses embedding width {row['embed_dim']} and mask ratio {row['mask_ratio']}"
    assert f"{start}: AUROC {float(row['auroc']):.3f} [" in text


def test_names_are_escaped_and_a_repeat_gives_the_same_bytes(report, tmp_path, text):
    assert "Auto_encoder &amp; co" in text
    assert "Auto_encoder & co" not in text
    write_page(report.spec, report.tables, report.figures, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == report.page.read_bytes()
