from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib import colormaps
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex, to_rgb
from report_experiment import make_experiment, material

from nemesis.evaluation.cost import superpatches
from nemesis.report import FIGURES
from nemesis.report.collect import collect, of_part
from nemesis.report.figures import (
    ablations_figure,
    cost_quality,
    counted,
    draw_figures,
    label_fractions,
    sweep_figure,
    training_curves,
)
from nemesis.report.figures.cost import points
from nemesis.report.figures.reconstructions import SIDES, centre, of_reference, reconstructions, view
from nemesis.report.figures.style import FRAME, METHOD_COLOURS, OTHER_COLOURS, colour, styles
from nemesis.report.tables import print_tables


def printed(report, name):
    return pd.read_csv(report.tables / f"{name}.csv")


def words(axes):
    return [text.get_text() for text in axes.texts]


# ------------------------------------------------------------------------------------------------- reconstructions


def test_every_plane_is_the_right_way_up():
    # One voxel at the patient's superior, right, anterior corner: D, H and W at their ends.
    volume = np.zeros((4, 5, 6))
    volume[3, 4, 5] = 1
    where = (3, 4, 5)
    for plane, shape in (("axial", (6, 5)), ("coronal", (4, 5)), ("sagittal", (4, 6))):
        picture = view(volume, plane, where)
        assert picture.shape == shape
        assert picture[0, 0] == 1  # top left: anterior or head at the top, right or anterior at the left
        assert picture.sum() == 1
    assert SIDES == {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}


def test_planes_go_through_the_body():
    volume = np.zeros((10, 12, 14))
    volume[6:9, 1:4, 9:12] = 1
    assert centre(volume) == (7, 2, 10)
    assert centre(np.zeros((5, 5, 5))) == (2, 2, 2)


def test_panels_have_the_shape_of_the_body():
    figure = reconstructions(material(), "x")
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
    figure = reconstructions(shown, "x")
    veil = figure.axes[1].images[1].get_array()
    expected = view(shown["hidden"], "axial", centre(shown["input"] / 255))
    np.testing.assert_array_equal(~np.ma.getmaskarray(veil), expected)


def test_bytes_and_shares_give_the_same_picture():
    shown = material()
    shares = shown | {name: (shown[name] / 255).astype(np.float32) for name in ("input", "reconstruction")}
    first, second = (reconstructions(m, "x").axes[2].images[0].get_array() for m in (shown, shares))
    np.testing.assert_array_equal(first, second)


def test_the_figure_shows_the_reference_even_if_another_comes_first(report):
    spec = of_part(report.spec, "methods")
    spec["runs"].reverse()
    assert Path(spec["runs"][0]["folder"]).name.startswith("random_vit")
    assert of_reference(spec).texts[0].get_text() == "NEMESIS, seed 1"


# ------------------------------------------------------------------------------------------------- files and styles


def test_figures_are_files_that_a_repeat_does_not_change(report, tmp_path):
    import matplotlib

    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 30, "axes.facecolor": "pink"}):  # a reader's own settings
        draw_figures(report.spec, report.collected, report.tables, tmp_path)
    names = {f"{name}{suffix}" for name in FIGURES for suffix in (".png", ".svg")}
    assert {f.name for f in tmp_path.iterdir()} == names
    for name in names:
        assert (tmp_path / name).read_bytes() == (report.figures / name).read_bytes()
    assert b"<dc:date>" not in (tmp_path / "training_curves.svg").read_bytes()


def test_what_cannot_be_drawn_is_said(tmp_path):
    spec = make_experiment(tmp_path)
    spec["runs"] = [entry for entry in spec["runs"] if entry["method"] == "random_vit"]
    spec["config"] |= {"sweep": None, "ablations": None}
    collect(spec, tmp_path / "collected")
    print_tables(spec, tmp_path / "collected", tmp_path / "tables")
    draw_figures(spec, tmp_path / "collected", tmp_path / "tables", tmp_path / "figures")
    assert all((tmp_path / "figures" / f"{name}.png").stat().st_size > 1000 for name in FIGURES)
    curves = pd.read_parquet(tmp_path / "collected" / "curves.parquet")
    ablations, sweep = (pd.read_csv(tmp_path / "tables" / f"{name}.csv") for name in ("ablations", "sweep"))
    said = [ablations_figure(ablations, spec), sweep_figure(sweep), training_curves(curves, spec), of_reference(spec)]
    assert [figure.texts[0].get_text() for figure in said] == [
        "This experiment has no ablations, or none was scored.",
        "This experiment has no sweep, or none of its trials is known.",
        "Nothing was pretrained.",
        "No method of this experiment reconstructs its input.",
    ]
    assert not any(figure.axes for figure in said)


def test_a_method_has_one_colour_whatever_stands_beside_it(report):
    spec = of_part(report.spec, "methods")
    spec["runs"] = spec["runs"][::-1]
    fractions = label_fractions(printed(report, "label_fractions"), spec)
    legend = fractions.legends[0]
    seen = {text.get_text(): line.get_color() for text, line in zip(legend.get_texts(), legend.get_lines(), strict=True)}
    assert seen == {"Random ViT": "#555555", "Auto_encoder & co": "#E69F00", "NEMESIS": "#0072B2"}
    curves = training_curves(pd.read_parquet(report.collected / "curves.parquet"), spec)
    assert [line.get_color() for line in curves.axes[0].get_lines()] == ["#E69F00", "#0072B2", "#0072B2"]
    ablations = ablations_figure(printed(report, "ablations"), report.spec)
    assert {line.get_color() for line in ablations.axes[0].get_lines() if line.get_marker() == "o"} == {"#0072B2"}
    left, right = cost(report).axes
    assert {to_hex(bar.get_edgecolor()).upper() for bar in right.patches} == set(seen.values())
    assert {line.get_color() for line in left.get_lines()} == set(seen.values())


def test_colours_stay_apart_for_every_kind_of_colour_vision():
    # Machado, Oliveira and Fernandes 2009, full severity, on linear RGB; distances in Oklab.
    kinds = {
        "protanopia": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
        "deuteranopia": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
        "tritanopia": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
    }
    cones = (
        (0.4122214708, 0.5363325363, 0.0514459929),
        (0.2119034982, 0.6806995451, 0.1073969566),
        (0.0883024619, 0.2817188376, 0.6299787005),
    )
    lab = (
        (0.2104542553, 0.7936177850, -0.0040720468),
        (1.9779984951, -2.4285922050, 0.4505937099),
        (0.0259040371, 0.7827717662, -0.8086757660),
    )

    def seen(shade, kind):
        rgb = np.array(to_rgb(shade))
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return np.array(lab) @ np.cbrt(np.array(cones) @ np.clip(np.array(kinds.get(kind, np.eye(3))) @ linear, 0, 1))

    for kind in ("ordinary", *kinds):
        for one, other in itertools.combinations(METHOD_COLOURS, 2):
            gap = np.linalg.norm(seen(METHOD_COLOURS[one], kind) - seen(METHOD_COLOURS[other], kind))
            assert gap > 0.07, f"{one} and {other} under {kind}"


def test_methods_from_outside_get_the_colour_of_their_name():
    assert colour("simclr3d") == colour("simclr3d") in OTHER_COLOURS
    assert len({colour(f"method{n}") for n in range(40)}) == len(OTHER_COLOURS)
    assert not set(OTHER_COLOURS) & set(METHOD_COLOURS.values())


def test_labels_of_one_colour_differ_by_marker_and_line():
    entries = [("NEMESIS", "nemesis"), ("AE", "ae"), ("NEMESIS", "nemesis"), ("NEMESIS, official", "nemesis")]
    look = styles({"runs": [{"label": label, "method": method} for label, method in entries]})
    assert list(look) == ["NEMESIS", "AE", "NEMESIS, official"]
    assert look["NEMESIS"].colour == look["NEMESIS, official"].colour
    assert look["NEMESIS"].marker != look["NEMESIS, official"].marker
    assert look["NEMESIS"].line != look["NEMESIS, official"].line
    assert (look["AE"].marker, look["AE"].line) == (look["NEMESIS"].marker, look["NEMESIS"].line)


# ----------------------------------------------------------------------------------------------------------- curves


def test_bands_are_the_intervals_and_stand_at_the_shares_of_labels(report):
    table = printed(report, "label_fractions")
    figure = label_fractions(table, of_part(report.spec, "methods"))
    assert [axes.get_title() for axes in figure.axes] == ["linear probe", "k-NN"]
    own = table[(table["method"] == "NEMESIS") & (table["protocol"] == "knn")]
    band = figure.axes[1].collections[0].get_paths()[0].vertices
    expected = {(x, y) for name in ("auroc_low", "auroc_high") for x, y in zip(own["label_fraction"], own[name], strict=True)}
    assert {tuple(corner) for corner in band} == expected
    line = next(line for line in figure.axes[1].get_lines() if line.get_marker() == "o")
    np.testing.assert_allclose(line.get_xydata(), own[["label_fraction", "auroc"]])
    assert [label.get_text() for label in figure.axes[1].get_xticklabels()] == ["25 %", "100 %"]


def test_the_legend_stands_outside_the_panels(report):
    figure = label_fractions(printed(report, "label_fractions"), of_part(report.spec, "methods"))
    figure.draw_without_rendering()
    assert figure.legends[0].get_window_extent().x0 >= figure.axes[-1].bbox.x1


def test_a_single_share_of_labels_has_bars_side_by_side(report):
    table = printed(report, "label_fractions")
    figure = label_fractions(table[table["label_fraction"] == 1], of_part(report.spec, "methods"))
    bars = [bar for bar in figure.axes[0].collections if isinstance(bar, LineCollection)]
    where = [bar.get_segments()[0][0][0] for bar in bars]
    assert len(set(where)) == 3
    own = table[(table["label_fraction"] == 1) & (table["protocol"] == "linear") & (table["method"] == "NEMESIS")].iloc[0]
    np.testing.assert_allclose(bars[0].get_segments()[0][:, 1], [own["auroc_low"], own["auroc_high"]])


def test_training_curves_are_those_of_the_methods_alone(report):
    curves = pd.read_parquet(report.collected / "curves.parquet")
    assert curves["run"].nunique() > 3  # cells and variants have curves, too
    figure = training_curves(curves, of_part(report.spec, "methods"))
    assert len(figure.axes[0].get_lines()) == 3
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["NEMESIS", "Auto_encoder & co"]


# ------------------------------------------------------------------------------------------------------------ sweep


def test_every_cell_says_its_auroc_and_the_chosen_one_is_framed(report):
    table = printed(report, "sweep")
    assert "not run" in set(table["status"])  # the paper's cells, which are not drawn
    axes = sweep_figure(table).axes[0]
    measured = table[table["status"] == "measured"]
    told = {text.get_position(): text.get_text() for text in axes.texts}
    assert len(told) == len(measured) == 4
    last = measured[(measured["embed_dim"] == 96) & (measured["mask_ratio"] == 0.5)].iloc[0]
    assert told[0, 1] == f"{last['auroc']:.3f}\n[{last['auroc_low']:.3f}, {last['auroc_high']:.3f}]"
    assert axes.images[0].get_array()[1, 0] == pytest.approx(last["auroc"])
    (frame,) = axes.patches
    chosen = measured[measured["chosen_by_validation"].astype(bool)].iloc[0]
    assert to_hex(frame.get_edgecolor()).upper() == FRAME
    assert tuple(frame.get_center()) == pytest.approx(
        ([0.5, 0.75].index(chosen["mask_ratio"]), [48, 96].index(chosen["embed_dim"]))
    )


def test_words_stand_out_from_their_cell():
    rows = [
        {"embed_dim": 96 * e, "mask_ratio": r / 10, "status": "measured", "effective_mask_ratio": 0.5, "validation_auroc": 0.5}
        | {"auroc": 0.5 + (10 * e + r) / 1000, "auroc_low": None, "auroc_high": None, "chosen_by_validation": False}
        for e in range(1, 6)
        for r in range(1, 10)
    ]

    def luminance(shade):
        rgb = np.array(to_rgb(shade))
        return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)

    axes = sweep_figure(pd.DataFrame(rows)).axes[0]
    picture = axes.images[0]
    for text in axes.texts:
        x, y = text.get_position()
        light, dark = sorted((luminance(text.get_color()), luminance(picture.to_rgba(picture.get_array()[y, x])[:3])))[::-1]
        assert (light + 0.05) / (dark + 0.05) > 4.5


def test_a_search_shows_its_trials_by_validation_and_pruned_ones_hollow():
    columns = ("trial", "embed_dim", "mask_ratio", "state", "validation_auroc", "chosen_by_validation", "status")
    rows = [
        (0, 96, 0.5, "complete", 0.90, False, "not run"),
        (1, 192, 0.55, "complete", 0.95, True, "measured"),
        (2, 96, 0.75, "pruned", 0.80, False, "not run"),
        (3, 192, 0.7, "failed", None, False, "not run"),
        (None, 768, 0.75, None, None, None, "not run"),  # the paper's
    ]
    figure = sweep_figure(pd.DataFrame(rows, columns=columns))
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["complete", "pruned", "chosen by inner validation"]
    finished, pruned, frame = figure.axes[0].collections
    assert finished.get_offsets().tolist() == [[0.5, 0], [0.55, 1]]
    assert len(finished.get_facecolor()) == 2 and len(pruned.get_facecolor()) == 0
    np.testing.assert_allclose(finished.get_facecolor()[1], colormaps["cividis"](1.0))  # the best
    np.testing.assert_allclose(pruned.get_edgecolor()[0], colormaps["cividis"](0.0))  # the worst
    assert frame.get_offsets().tolist() == [[0.55, 1]]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["96", "192"]


# -------------------------------------------------------------------------------------------------------- ablations


def test_variants_stand_by_group_with_a_line_at_the_method_as_configured(report):
    table = printed(report, "ablations")
    figure = ablations_figure(table, report.spec)
    auroc, psnr = figure.axes
    names = [label.get_text() for label in auroc.get_yticklabels()]
    assert (
        " / ".join(names) == "as configured / masking / plane alone / axis alone / noise / no noise / superpatch / superpatch 32³"
    )
    bold = [label.get_text() for label in auroc.get_yticklabels() if label.get_fontweight() == "bold"]
    assert bold == ["masking", "noise", "superpatch"]
    measured = table[table["status"] == "measured"].set_index("variant")
    for axes, name in ((auroc, "auroc"), (psnr, "psnr_masked")):
        dots = {names[int(line.get_ydata()[0])]: line.get_xdata()[0] for line in axes.get_lines() if line.get_marker() == "o"}
        assert dots == pytest.approx(measured[name].to_dict())
        (across,) = (line for line in axes.get_lines() if line.get_marker() != "o")
        assert list(across.get_xdata()) == [measured.loc["as configured", name]] * 2
        bars = [bar.get_segments()[0] for bar in axes.collections]
        ends = {names[int(bar[0][1])]: tuple(bar[:, 0]) for bar in bars}
        assert ends["axis alone"] == pytest.approx(tuple(measured.loc["axis alone", [f"{name}_low", f"{name}_high"]]))
        assert "95 % interval" in axes.get_xlabel()


# ------------------------------------------------------------------------------------------------------------- cost


def costs_of(report):
    rows, runs = (pd.read_parquet(report.collected / f"{name}.parquet") for name in ("rows", "runs"))
    return counted(report.spec, rows, runs)


def cost(report):
    tables = {name: printed(report, name) for name in ("main", "ablations", "sweep")}
    return cost_quality(costs_of(report), tables, report.spec)


def test_costs_of_a_scan_compare_superpatch_sizes(report):
    costs = costs_of(report).set_index(["part", "label"])
    small, large = costs.loc[("ablations", "as configured")], costs.loc[("ablations", "superpatch 32³")]
    assert small["volume"] == small["encode"] * superpatches(16) == small["encode"] * 25 * 32 * 32
    assert large["volume"] == large["encode"] * superpatches(32) == large["encode"] * 13 * 16 * 16
    assert costs.loc[("methods", "NEMESIS"), "pretext"] == 2 * costs.loc[("methods", "NEMESIS"), "encode"]
    assert np.isnan(costs.loc[("methods", "Random ViT"), "pretext"])
    assert costs.loc[("sweep", "E 96, r 0.5"), "embed_dim"] == 96


def test_scores_meet_costs_and_variants_that_cost_the_same_are_left_out():
    costs = pd.DataFrame(
        [
            ("methods", "NEMESIS", None, None, 10.0),
            ("methods", "AE", None, None, 20.0),
            ("ablations", "as configured", None, None, 10.0),
            ("ablations", "no noise", None, None, 10.0),
            ("ablations", "patch 8³", None, None, 80.0),
            ("sweep", "E 96, r 0.3", 96, 0.25 + 0.05, 5.0),
        ],
        columns=["part", "label", "embed_dim", "mask_ratio", "volume"],
    )
    scores = {"auroc": 0.9, "auroc_low": 0.8, "auroc_high": 1.0}
    tables = {
        "main": pd.DataFrame([{"method": m, "protocol": p} | scores for m, p in (("NEMESIS", "linear"), ("AE", "knn"))]),
        "ablations": pd.DataFrame([{"variant": v} | scores for v in ("as configured", "no noise", "patch 8³")]),
        "sweep": pd.DataFrame([{"embed_dim": 96, "mask_ratio": 0.3} | scores, {"embed_dim": 768, "mask_ratio": 0.5}]),
    }
    assert list(points(costs, tables, "linear")["label"]) == ["NEMESIS", "as configured", "patch 8³", "E 96, r 0.3"]


def test_the_left_panel_shows_quality_against_cost(report):
    left, _ = cost(report).axes
    costs = costs_of(report).set_index(["part", "label"])
    main = printed(report, "main").set_index(["method", "protocol"])
    line = next(line for line in left.get_lines() if line.get_color() == METHOD_COLOURS["ae"])
    expected = costs.loc[("methods", "Auto_encoder & co"), "volume"], main.loc[("Auto_encoder & co", "linear"), "auroc"]
    assert line.get_xydata()[0] == pytest.approx(expected)
    assert left.get_xscale() == "log"
    assert left.get_xlabel() == "MAC (1 MAC = 2 FLOP) to encode a scan of 512 × 512 × 400 voxels"
    assert left.get_ylabel() == "AUROC, linear probe, 100 % of the labels (95 % interval)"


def test_costs_without_scores_are_drawn_all_the_same(report):
    tables = {name: printed(report, name).assign(auroc=None) for name in ("main", "ablations", "sweep")}
    left, right = cost_quality(costs_of(report), tables, report.spec).axes
    assert words(left) == ["Nothing was scored."]
    assert len(right.patches) == 5


def test_names_of_small_points_do_not_collide(report):
    figure = cost(report)
    left = figure.axes[0]
    assert "superpatch 32³" in words(left)  # it lies alone
    boxes = [text.get_window_extent() for text in left.texts]
    assert len(boxes) > 2
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    spots = left.transData.transform([line.get_xydata()[0] for line in left.get_lines()])
    assert not any(box.contains(*spot) for box in boxes for spot in spots)


def test_bars_hold_the_cost_of_a_superpatch(report):
    right = cost(report).axes[1]
    costs = costs_of(report)
    costs = costs[costs["part"] == "methods"]
    solid = [bar.get_width() for bar in right.patches if not bar.get_hatch()]
    hatched = [bar.get_width() for bar in right.patches if bar.get_hatch()]
    assert solid == list(costs["encode"])
    assert hatched == list(costs["pretext"].dropna())
    assert [label.get_text() for label in right.get_yticklabels()] == list(costs["label"])
    assert "160.0 M" in words(right)
    assert right.get_xlabel() == "MAC (1 MAC = 2 FLOP) per superpatch"
