from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib import colormaps
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex, to_rgb
from report_experiment import attention_material, make_experiment, material

from nemesis.evaluation.cost import superpatches
from nemesis.report import FIGURES
from nemesis.report.collect import collect, of_part
from nemesis.report.figures import (
    ablations_figure,
    convergence_figure,
    cost_quality,
    counted,
    draw_figures,
    label_fractions,
    pretexts_figure,
    segmentation_figure,
    sweep_figure,
    training_curves,
)
from nemesis.report.figures.attention import attention_figure, attention_of_reference
from nemesis.report.figures.cost import points
from nemesis.report.figures.reconstructions import SIDES, centre, of_reference, reconstructions, view
from nemesis.report.figures.sizes import superpatch_sizes
from nemesis.report.figures.style import FRAME, GREY, METHOD_COLOURS, OTHER_COLOURS, colour, styles
from nemesis.report.tables import print_tables


def printed(report, name):
    return pd.read_csv(report.tables / f"{name}.csv")


def words(axes):
    return [text.get_text() for text in axes.texts]


def ticks(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def legend_of(figure):
    """Name → what stands for it."""
    (legend,) = figure.legends
    return dict(zip((text.get_text() for text in legend.get_texts()), legend.legend_handles, strict=True))


def without_intervals(table):
    """A printed table of an experiment with too few patients."""
    return table.assign(**{name: np.nan for name in table if name.endswith(("_low", "_high"))})


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
    assert [axes.get_ylabel() for axes in figure.axes[:12:4]] == ["axial", "coronal", "sagittal"]


def test_every_panel_shows_what_its_title_says():
    shown = material()
    shown["reconstruction"] //= 2  # wrong where nothing is hidden, too
    original, guess = (shown[name] / 255 for name in ("input", "reconstruction"))
    error = abs(guess - original)
    top = np.ceil(np.percentile(error[shown["hidden"]], 99.5) * 20) / 20
    panels = {
        "input": (original, (0, 1)),
        "masked input": (original, (0, 1)),
        "reconstruction": (guess, (0, 1)),
        "absolute error": (error, (0, top)),
    }
    figure = reconstructions(shown, "x")
    assert [axes.get_title() for axes in figure.axes[:4]] == list(panels)
    assert figure.axes[12].get_ylabel() == "absolute error (HU window = 1)"
    assert figure.axes[12].get_ylim() == pytest.approx((0, top))
    for row, plane in enumerate(SIDES):
        for axes, (name, (volume, ends)) in zip(figure.axes[4 * row : 4 * row + 4], panels.items(), strict=True):
            picture, *veils = axes.images
            np.testing.assert_allclose(picture.get_array(), view(volume, plane, centre(original)), atol=1e-6)
            assert picture.get_clim() == pytest.approx(ends)
            assert picture.get_cmap().name == ("inferno" if name == "absolute error" else "gray")
            assert len(veils) == (name == "masked input")
            for veil in veils:
                hidden = view(shown["hidden"], plane, centre(original))
                np.testing.assert_array_equal(~np.ma.getmaskarray(veil.get_array()), hidden)


def test_letters_say_which_side_of_the_patient_lies_where():
    figure = reconstructions(material(), "x")
    told = []
    for axes in figure.axes[:12:4]:
        at = {text.get_position(): text.get_text() for text in axes.texts}
        left, right = min(at), max(at)
        bottom, top = min(at, key=lambda place: place[1]), max(at, key=lambda place: place[1])
        told.append("".join(at[place] for place in (left, right, top, bottom)))
    assert told == ["RLAP", "RLSI", "APSI"]
    assert not any(axes.texts for n, axes in enumerate(figure.axes) if n % 4)


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
    said += [superpatch_sizes(pd.DataFrame(), ablations, spec), attention_of_reference(spec)]
    assert [figure.texts[0].get_text() for figure in said] == [
        "This experiment has no ablations, or none was scored.",
        "This experiment has no sweep, or none of its trials is known.",
        "Nothing was pretrained.",
        "No method of this experiment reconstructs its input.",
        "No ablation of this experiment varies the size of the superpatch.",
        "No method of this experiment shows where it attends.",
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


# -------------------------------------------------------------------------------------------------------- attention


def test_attention_stands_beside_the_superpatch_that_it_is_of():
    shown = attention_material() | {"spacing": material()["spacing"]}
    figure = attention_figure(shown, "x")
    rows = np.array(figure.axes[:9], object).reshape(3, 3)
    assert [axes.get_title() for axes in rows[0]] == ["superpatch", "plane stream", "axis stream"]
    assert [axes.get_ylabel() for axes in rows[:, 0]] == ["axial", "coronal", "sagittal"]
    where = centre(shown["attention_input"] / 255)
    tokens = [at * 4 // 12 for at in where]
    for row, plane in zip(rows, SIDES, strict=True):
        volumes = [shown["attention_input"], shown["attention_plane"], shown["attention_axis"]]
        for axes, volume, place in zip(row, volumes, (where, tokens, tokens), strict=True):
            (picture,) = axes.images
            np.testing.assert_array_equal(picture.get_array(), view(volume, plane, place))
    plane, axis = (axes.images[0] for axes in rows[0, 1:])
    assert plane.get_clim() == axis.get_clim() == pytest.approx((0.4, 1.6))  # one bar for both
    assert figure.axes[9].get_ylabel() == "attention received (1: as every other token)"
    figure.draw_without_rendering()
    boxes = [[axes.get_window_extent() for axes in row] for row in rows]
    for row, ratio in zip(boxes, (3 / 2, 5 / 2, 5 / 3), strict=True):  # voxels of 5, 2 and 3 mm
        assert [box.height / box.width for box in row] == pytest.approx([ratio] * 3, rel=1e-3)


def test_attention_is_the_references_and_who_has_none_says_so(report):
    spec = of_part(report.spec, "methods")
    assert attention_of_reference(spec).get_suptitle() == "NEMESIS, seed 0"
    spec["runs"] = [entry for entry in spec["runs"] if entry["method"] != "nemesis"]
    figure = attention_of_reference(spec)
    assert figure.texts[0].get_text() == "No method of this experiment shows where it attends." and not figure.axes


# ------------------------------------------------------------------------------------------------- superpatch sizes


def test_superpatch_sizes_are_those_of_the_ablations(report):
    table, costs = printed(report, "ablations"), costs_of(report)
    figure = superpatch_sizes(costs, table, report.spec)
    own = table[table["variant"].isin(["as configured", "superpatch 32³"])].set_index("superpatch")
    volumes = costs[costs["part"] == "ablations"].set_index("label")["volume"]
    for axes, name in zip(figure.axes, ("auroc", "psnr_masked", "volume"), strict=True):
        found = {line.get_xdata()[0]: line for line in axes.get_lines()}
        assert sorted(found) == [16, 32] and ticks(axes.xaxis) == ["16³", "32³"]
        expected = {16: volumes["as configured"], 32: volumes["superpatch 32³"]}
        if name != "volume":
            expected = own[name].to_dict()
            ends = {bar[0][0]: tuple(bar[:, 1]) for bars in axes.collections for bar in bars.get_segments()}
            for edge, row in own.iterrows():
                assert ends[edge] == pytest.approx((row[f"{name}_low"], row[f"{name}_high"]))
        assert {edge: line.get_ydata()[0] for edge, line in found.items()} == pytest.approx(expected)
        assert to_hex(found[32].get_markerfacecolor()) == "#ffffff" != to_hex(found[16].get_markerfacecolor())
    assert figure.axes[2].get_yscale() == "log" and figure.axes[2].get_ylabel() == "MAC to encode a scan of 512×512×400"
    same = table[table["variant"] != "superpatch 32³"]
    said = superpatch_sizes(costs, same, report.spec)
    assert said.texts[0].get_text() == "No ablation of this experiment varies the size of the superpatch." and not said.axes


# ----------------------------------------------------------------------------------------------------------- curves


def test_bars_are_the_intervals_and_stand_around_the_shares_of_labels(report):
    table, look = printed(report, "label_fractions"), styles(of_part(report.spec, "methods"))
    figure = label_fractions(table, of_part(report.spec, "methods"))
    measured = table[table["status"] == "measured"].set_index(["protocol", "method"])
    assert [axes.get_title() for axes in figure.axes] == ["linear probe", "k-NN"]
    for axes, protocol in zip(figure.axes, ("linear", "knn"), strict=True):
        places = []
        for bars, line, label in zip(axes.collections, axes.get_lines(), look, strict=True):
            own = measured.loc[(protocol, label)]
            np.testing.assert_allclose(line.get_ydata(), own["auroc"])
            places.append(line.get_xdata())
            ends = np.array(bars.get_segments())
            np.testing.assert_allclose(ends[:, :, 0], np.stack([line.get_xdata()] * 2, 1))
            np.testing.assert_allclose(ends[:, :, 1], own[["auroc_low", "auroc_high"]])
            assert to_hex(bars.get_color()[0]) == to_hex(line.get_color()) == to_hex(look[label].colour)
        assert (np.diff(places, axis=0) > 0).all(), "side by side"
        np.testing.assert_allclose(np.exp(np.log(places).mean(0)), [0.25, 1])
        assert max(place[0] for place in places) < 0.5 < min(place[1] for place in places)
        assert ticks(axes.xaxis) == ["25 %", "100 %"] and list(axes.get_xticks()) == [0.25, 1]
        assert axes.get_xlabel() == "labelled training patients"
    assert figure.axes[0].get_ylabel() == "AUROC, 95 % interval"
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    named = {name: (line.get_color(), line.get_marker(), line.get_linestyle()) for name, line in legend_of(figure).items()}
    assert named == {label: (style.colour, style.marker, style.line) for label, style in look.items()}


def test_a_method_by_itself_stands_at_its_shares_of_labels(report):
    table, spec = printed(report, "label_fractions"), of_part(report.spec, "methods")
    spec["runs"] = [entry for entry in spec["runs"] if entry["label"] == "NEMESIS"]
    figure = label_fractions(table[table["method"] == "NEMESIS"], spec)
    for axes in figure.axes:
        (line,) = axes.get_lines()
        np.testing.assert_allclose(line.get_xdata(), [0.25, 1])


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
    spec = of_part(report.spec, "methods")
    figure = training_curves(curves, spec)
    (axes,) = figure.axes
    losses = curves[curves["monitor"] == "loss"].set_index("run")
    trained = [entry for entry in spec["runs"] if entry["method"] != "random_vit"]
    assert [entry["seed"] for entry in trained] == [0, 1, 0]
    for line, entry in zip(axes.get_lines(), trained, strict=True):
        np.testing.assert_array_equal(line.get_xydata(), losses.loc[entry["run"], ["step", "value"]])
        assert line.get_color() == METHOD_COLOURS[entry["method"]]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("optimiser step", "pretext loss (each method's own)")
    assert axes.get_yscale() == "log" and axes.get_xscale() == "linear"
    named = {name: line.get_color() for name, line in legend_of(figure).items()}
    assert named == {"NEMESIS": METHOD_COLOURS["nemesis"], "Auto_encoder & co": METHOD_COLOURS["ae"]}


def test_losses_that_are_not_positive_are_drawn_on_an_even_scale(report):
    curves = pd.read_parquet(report.collected / "curves.parquet")
    (axes,) = training_curves(curves.assign(value=-curves["value"]), of_part(report.spec, "methods")).axes
    assert axes.get_yscale() == "linear"
    assert all((line.get_ydata() < 0).all() for line in axes.get_lines())


# ------------------------------------------------------------------------------------------------------------ sweep


def test_every_cell_says_its_auroc_and_the_chosen_one_is_framed(report):
    table = printed(report, "sweep")
    assert "not run" in set(table["status"])  # the paper's cells, which are not drawn
    figure = sweep_figure(table)
    axes, bar = figure.axes
    measured = table[table["status"] == "measured"]
    told = {text.get_position(): text.get_text() for text in axes.texts}
    places = [(x, y) for y in range(2) for x in range(2)]  # the table's cells go by width, then by ratio
    for (x, y), cell in zip(places, measured.to_dict("records"), strict=True):
        assert told.pop((x, y)) == f"{cell['auroc']:.3f}\n[{cell['auroc_low']:.3f}, {cell['auroc_high']:.3f}]"
        assert axes.images[0].get_array()[y, x] == pytest.approx(cell["auroc"])
        if cell["chosen_by_validation"]:
            (frame,) = axes.patches
            assert frame.get_center() == pytest.approx((x, y))
    assert not told
    assert to_hex(frame.get_edgecolor()).upper() == FRAME
    assert list(legend_of(figure)) == ["chosen by inner validation"]
    assert list(measured["effective_mask_ratio"].iloc[:2]) == pytest.approx([0.75, 0.9375])
    assert ticks(axes.xaxis) == ["0.5\n75 % hidden", "0.75\n94 % hidden"] and list(axes.get_xticks()) == [0, 1]
    assert ticks(axes.yaxis) == ["48", "96"] and list(axes.get_yticks()) == [0, 1]
    assert axes.get_xlabel() == "mask ratio r, within planes and along the axis"
    assert (axes.get_ylabel(), bar.get_ylabel()) == ("embedding width E", "AUROC, 95 % interval")


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
    axes, bar = figure.axes
    assert ticks(axes.yaxis) == ["96", "192"]
    assert axes.get_xlabel() == "mask ratio r, within planes and along the axis"
    assert (axes.get_ylabel(), bar.get_ylabel()) == ("embedding width E", "AUROC on inner validation")


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
        ends = measured[[f"{name}_low", f"{name}_high"]]
        own = ends.loc["as configured"]
        dots = {names[int(line.get_ydata()[0])]: line.get_xdata()[0] for line in axes.get_lines() if line.get_marker() == "o"}
        assert dots == pytest.approx(measured[name].to_dict())
        (across,) = (line for line in axes.get_lines() if line.get_marker() != "o")
        assert list(across.get_xdata()) == [measured.loc["as configured", name]] * 2
        (band,) = axes.patches
        assert (band.get_x(), band.get_x() + band.get_width()) == pytest.approx(tuple(own))
        assert to_hex(band.get_facecolor()) == to_hex(across.get_color()) == GREY
        bars = [bar.get_segments()[0] for bar in axes.collections]
        drawn = {names[int(y)]: (low, high) for (low, y), (high, _) in bars}
        assert drawn == {variant: tuple(pair) for variant, pair in ends.iterrows()}
    assert [axes.get_xlabel() for axes in figure.axes] == ["AUROC, 95 % interval", "PSNR of hidden voxels (dB), 95 % interval"]


def test_a_measure_without_figures_has_no_panel(report):
    (axes,) = ablations_figure(printed(report, "ablations").assign(psnr_masked=np.nan), report.spec).axes
    assert axes.get_xlabel() == "AUROC, 95 % interval"


# --------------------------------------------------------------------------------------------------------- pretexts


def test_pretexts_go_from_untrained_to_trained_in_a_panel_for_each_number(report):
    table, methods = printed(report, "pretraining"), of_part(report.spec, "methods")
    more = pd.DataFrame([{"method": "NEMESIS", "monitor": "kl", "untrained": 900.0, "trained": 20.0}])
    figure = pretexts_figure(pd.concat([table, more]), methods)
    panels = {axes.get_xlabel(): axes for axes in figure.axes if axes.get_visible()}
    assert set(panels) == {"PSNR, all voxels (dB)", "KL to the prior (nats)"}
    for name, axes in panels.items():
        monitor = "psnr" if name.startswith("PSNR") else "kl"
        rows = pd.concat([table, more])
        rows = rows[rows["monitor"] == monitor]
        assert ticks(axes.yaxis) == list(rows["method"])
        points = [(line.get_xdata()[0], line.get_markerfacecolor() == "white") for line in axes.lines]
        ends = zip(rows["untrained"], rows["trained"], strict=True)
        assert points == [point for before, after in ends for point in ((before, True), (after, False))]
    assert set(legend_of(figure)) == {"untrained", "trained"}


def test_without_measured_pretexts_the_figure_says_so(report):
    table = printed(report, "pretraining").assign(trained=np.nan)
    assert "No pretext" in " ".join(text.get_text() for text in pretexts_figure(table, of_part(report.spec, "methods")).texts)


# ----------------------------------------------------------------------------------------------------- segmentation


def test_convergence_has_a_panel_for_each_task_and_method_and_a_line_for_each_start(report):
    table, spec = printed(report, "convergence"), of_part(report.spec, "methods")
    figure = convergence_figure(table, spec)
    shown = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_ylabel() for axes in shown] == ["AUROC"] * 3 + ["mean Dice"]
    scales = [axes.get_ylim() for axes in shown]
    assert scales[0] == scales[1] == scales[2] != scales[3], "one for each task"
    lines = {line.get_linestyle(): line for line in shown[-1].get_lines() if len(line.get_xdata())}
    assert list(lines["-"].get_xdata()) == [20, 40, 60] and list(lines[":"].get_xdata()) == [26, 53, 80]
    assert lines["-"].get_markerfacecolor() != "white" == lines["--"].get_markerfacecolor()
    here = table[(table["task"] == "segmentation") & (table["arm"] == "pretrained")]
    assert list(lines["-"].get_ydata()) == list(here["validation"])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "as its method starts it", "from scratch", "from scratch, matched compute",
    ]  # fmt: skip
    (told,) = convergence_figure(table.iloc[:0], spec).texts
    assert "looked at" in told.get_text()


def test_segmentation_has_a_mark_for_every_start(report):
    table = printed(report, "segmentation")
    (axes,) = (figure := segmentation_figure(table, of_part(report.spec, "methods"))).axes
    marks = [(line.get_xdata()[0], line.get_marker(), line.get_markerfacecolor() == "white") for line in axes.lines]
    assert marks == list(zip(table["dice"], ("o", "o", "D"), (False, True, True), strict=True))
    assert ticks(axes.yaxis) == ["Auto_encoder & co"]
    assert axes.get_xlabel() == "mean Dice over organs, 100 % of the labels, 95 % interval"
    assert list(legend_of(figure)) == ["as its method starts it", "from scratch", "from scratch, matched compute"]
    (told,) = segmentation_figure(table.iloc[:0], of_part(report.spec, "methods")).texts
    assert "No network" in told.get_text()


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
    assert left.get_ylabel() == "AUROC, linear probe, 100 % of the labels, 95 % interval"


def test_points_stand_amid_their_intervals_under_their_names(report):
    figure = cost(report)
    left, tables = figure.axes[0], {name: printed(report, name) for name in ("main", "ablations", "sweep")}
    drawn = points(costs_of(report), tables, "linear").to_dict("records")
    assert len(drawn) == 3 + 4 + 5  # methods, cells, variants
    bars = sorted(tuple(map(tuple, bar.get_segments()[0])) for bar in left.collections)
    assert bars == sorted(tuple((row["volume"], row[f"auroc_{end}"]) for end in ("low", "high")) for row in drawn)
    looks = {label: (style.colour, style.marker) for label, style in styles(of_part(report.spec, "methods")).items()}
    looks |= {"sweep cell": (METHOD_COLOURS["nemesis"], "s"), "ablation variant": (METHOD_COLOURS["nemesis"], "d")}
    small = {"sweep": "sweep cell", "ablations": "ablation variant"}
    spots = {tuple(line.get_xydata()[0]): (line.get_color(), line.get_marker()) for line in left.get_lines()}
    assert spots == {(row["volume"], row["auroc"]): looks[small.get(row["part"], row["label"])] for row in drawn}
    named = legend_of(figure)
    assert not named.pop("encoding").get_hatch() and named.pop("pretext, forward").get_hatch()
    assert {name: (handle.get_color(), handle.get_marker()) for name, handle in named.items()} == looks


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
    assert ticks(right.yaxis) == list(costs["label"])
    assert words(right) == ["160.0 M", "320.0 M", "90.0 M", "180.0 M", "50.0 M"]
    assert right.get_xlabel() == "MAC (1 MAC = 2 FLOP) per superpatch"


# -------------------------------------------------------------------------------------------------------- few patients


def test_an_axis_speaks_of_intervals_only_where_one_is_drawn(report):
    for change, said in ((lambda table: table, True), (without_intervals, False)):
        tables = {name: change(printed(report, name)) for name in ("main", "label_fractions", "ablations", "sweep")}
        for figure, count in (
            (label_fractions(tables["label_fractions"], of_part(report.spec, "methods")), 1),
            (ablations_figure(tables["ablations"], report.spec), 2),
            (sweep_figure(tables["sweep"]), 1),
            (cost_quality(costs_of(report), tables, report.spec), 1),
        ):
            figure.draw_without_rendering()
            named = [name for axes in figure.axes for name in (axes.get_xlabel(), axes.get_ylabel())]
            scores = [name for name in named if name.startswith(("AUROC", "PSNR"))]
            assert len(scores) == count and all(name.endswith("95 % interval") == said for name in scores)
