from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_experiment import make_experiment, material

from nemesis.report import FIGURES, figures
from nemesis.report.collect import collect
from nemesis.report.tables import print_tables


def test_every_plane_is_the_right_way_up():
    # One voxel at the patient's superior, right, anterior corner: D, H and W at their ends.
    volume = np.zeros((4, 5, 6))
    volume[3, 4, 5] = 1
    where = (3, 4, 5)
    for plane, shape in (("axial", (6, 5)), ("coronal", (4, 5)), ("sagittal", (4, 6))):
        picture = figures.view(volume, plane, where)
        assert picture.shape == shape
        assert picture[0, 0] == 1  # top left: anterior or head at the top, right or anterior at the left
        assert picture.sum() == 1
    assert figures.SIDES == {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}


def test_planes_go_through_the_body():
    volume = np.zeros((10, 12, 14))
    volume[6:9, 1:4, 9:12] = 1
    assert figures.centre(volume) == (7, 2, 10)
    assert figures.centre(np.zeros((5, 5, 5))) == (2, 2, 2)


def test_panels_have_the_shape_of_the_body():
    figure = figures.reconstructions(material(), "x")
    width, height = figure.get_size_inches()
    boxes = [axes.get_position() for axes in figure.axes[:12:4]]
    ratios = [box.height * height / (box.width * width) for box in boxes]
    depth, breadth, thickness = 12 * 5.0, 20 * 2.0, 16 * 3.0  # mm
    assert ratios == pytest.approx([thickness / breadth, depth / breadth, depth / thickness])
    assert [axes.get_title() for axes in figure.axes[:4]] == [
        "input",
        "masked input",
        "reconstruction",
        "absolute error",
    ]
    assert [axes.get_ylabel() for axes in figure.axes[:12:4]] == ["axial", "coronal", "sagittal"]


def test_only_hidden_voxels_are_veiled():
    shown = material()
    figure = figures.reconstructions(shown, "x")
    veil = figure.axes[1].images[1].get_array()
    expected = figures.view(shown["hidden"], "axial", figures.centre(shown["input"] / 255))
    np.testing.assert_array_equal(~np.ma.getmaskarray(veil), expected)


def test_bytes_and_shares_give_the_same_picture():
    shown = material()
    shares = shown | {name: (shown[name] / 255).astype(np.float32) for name in ("input", "reconstruction")}
    first, second = (figures.reconstructions(m, "x").axes[2].images[0].get_array() for m in (shown, shares))
    np.testing.assert_array_equal(first, second)


def test_figures_are_files_that_a_repeat_does_not_change(report, tmp_path):
    figures.draw_figures(report.spec, report.collected, report.tables, tmp_path)
    names = {f"{name}{suffix}" for name in FIGURES for suffix in (".png", ".svg")}
    assert {f.name for f in tmp_path.iterdir()} == names
    for name in names:
        assert (tmp_path / name).read_bytes() == (report.figures / name).read_bytes()
    assert b"<dc:date>" not in (tmp_path / "training_curves.svg").read_bytes()


def test_what_cannot_be_drawn_is_said(tmp_path):
    spec = make_experiment(tmp_path)
    spec["runs"] = [entry for entry in spec["runs"] if entry["method"] == "random_vit"]
    collect(spec, tmp_path / "collected")
    print_tables(spec, tmp_path / "collected", tmp_path / "tables")
    figures.draw_figures(spec, tmp_path / "collected", tmp_path / "tables", tmp_path / "figures")
    assert "No method of this experiment reconstructs" in (tmp_path / "tables" / "reconstruction.md").read_text()
    assert all((tmp_path / "figures" / f"{name}.png").stat().st_size > 1000 for name in FIGURES)


def test_each_method_has_one_colour(report):
    labels = [entry["label"] for entry in report.spec["runs"][1:]]
    figure = figures.label_fractions(pd.read_csv(report.tables / "label_fractions.csv"), labels)
    colours = {}
    for line in figure.axes[0].get_lines():
        colours.setdefault(line.get_color(), []).append(line)
    assert set(colours) == set(figures.COLOURS[:3])
    curves = figures.training_curves(pd.read_parquet(report.collected / "curves.parquet"), report.spec)
    assert [line.get_color() for line in curves.axes[0].get_lines()] == [figures.COLOURS[n] for n in (0, 0, 1)]


def test_the_figure_shows_the_reference_even_if_another_comes_first(report):
    spec = report.spec | {"runs": report.spec["runs"][::-1]}
    assert Path(spec["runs"][0]["folder"]).name.startswith("random_vit")
    title = figures._reconstructions(spec).texts[0].get_text()
    assert title == "NEMESIS, seed 1"
