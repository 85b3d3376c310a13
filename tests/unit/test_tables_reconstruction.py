"""The printed reconstructions: what they are means of, which input was judged, what stands beside them."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from report_experiment import make_experiment

from nemesis.evaluation.statistics import mean_over_superpatches
from nemesis.report.collect import collect
from nemesis.report.tables import print_tables, read_measured
from nemesis.report.tables.maesil import maesil_datasets_table, maesil_table
from nemesis.report.tables.reconstruction import reconstruction_table


def _rows(report, name="reconstruction"):
    with (report.tables / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def measured(report):
    return read_measured(report.spec, report.collected)


@pytest.fixture(scope="module")
def two_datasets(tmp_path_factory):
    """BTCV and another set, NEMESIS under MAESIL's name."""
    root = tmp_path_factory.mktemp("two")
    spec = make_experiment(root, ("BTCV", "b"))
    for entry in spec["runs"]:
        if entry["label"] == "NEMESIS":
            entry["label"] = "MAESIL"
    collect(spec, root / "collected")
    print_tables(spec, root / "collected", root / "tables")
    return spec, root


def _of(measured, label, masked, metric, region="whole", scope="superpatch"):
    """Of each run the superpatches above the foreground floor, or the stitched volumes."""
    frames = [measured.reconstructions[entry["run"]] for entry in measured.labels("methods")[label]]
    frames = [f[(f["input_masked"] == masked) & (f["metric"] == metric) & (f["region"] == region)] for f in frames]
    return [f[(f["scope"] == scope) & ~f["easy"]] for f in frames]


def _with(measured, changed):
    """The same with the figures of every superpatch changed."""
    return replace(measured, reconstructions={run: changed(frame.copy()) for run, frame in measured.reconstructions.items()})


# ------------------------------------------------------------------------------------------------------------- details


def test_reconstruction_takes_the_mean_over_seeds(report, measured):
    row = _rows(report)[0]
    frames = _of(measured, "NEMESIS", True, "psnr", "masked")
    first, second = (frame["value"].mean() for frame in frames)
    assert second - first == pytest.approx(0.25)
    assert float(row["psnr_masked"]) == pytest.approx((first + second) / 2)
    estimate = mean_over_superpatches(frames, resamples=report.spec["bootstrap"])
    assert [float(row[f"psnr_masked_{end}"]) for end in ("low", "high")] == pytest.approx([estimate.low, estimate.high])
    assert float(row["psnr_visible_mean"]) == pytest.approx(float(row["psnr_masked"]) - 3)
    stitched, other, volumes = _rows(report)[1:4]
    assert [r["scope"] for r in (row, stitched, other, volumes)] == ["superpatch", "stitched"] * 2
    assert other["psnr_masked"] == other["psnr_masked_low"] == ""  # hides nothing
    unmasked = _of(measured, "Auto_encoder & co", False, "psnr")[0]["value"].mean()
    assert float(other["psnr_unmasked_input"]) == pytest.approx(unmasked)


def test_easy_negatives_are_told_with_the_fill_beside_them(report, measured):
    table = reconstruction_table(measured)
    place = table.columns.index("masked / fill with easy")
    row = _rows(report)[0]
    masked, fill = (float(row[f"{name}_easy_in"]) for name in ("psnr_masked", "psnr_visible_mean"))
    assert masked > float(row["psnr_masked"]) + 0.3  # the easy ones of the fixture lie 2 dB above
    assert table.rows[0][place] == f"{masked:.2f} / {fill:.2f}"
    assert [line[place] for line in table.rows[1:]] == ["–"] * 3  # stitched volumes hold them; what hides nothing has no mask


def test_stitched_volumes_have_figures_of_their_own_with_an_interval_over_patients(report, measured):
    row = _rows(report)[1]
    for name, place in (("psnr_masked", (True, "psnr", "masked")), ("psnr_whole", (True, "psnr", "whole")),
                        ("psnr_unmasked_input", (False, "psnr", "whole")), ("ssim_whole", (True, "ssim", "whole")),
                        ("psnr_masked_unmasked_input", (False, "psnr", "masked"))):  # fmt: skip
        frames = _of(measured, "NEMESIS", *place, scope="stitched")
        estimate = mean_over_superpatches(frames, resamples=report.spec["bootstrap"])
        told = [float(row[f"{name}{end}"]) for end in ("", "_low", "_high")]
        assert told == pytest.approx([estimate.point, estimate.low, estimate.high])
        assert told[1] < told[0] < told[2]
    assert (row["n_patients"], row["n_superpatches"]) == ("24", "24")  # a volume of each


def test_unmasked_input_is_judged_on_the_voxels_that_the_mask_would_hide_too(report, measured):
    table = reconstruction_table(measured)
    place = table.columns.index("unmasked input: PSNR masked / visible")
    values = [
        np.mean([f["value"].mean() for f in _of(measured, "NEMESIS", False, "psnr", region)]) for region in ("masked", "visible")
    ]
    assert table.rows[0][place] == " / ".join(f"{value:.2f}" for value in values)
    assert table.rows[2][place] == "–"  # nothing would be hidden


def test_every_number_of_superpatches_is_that_of_its_figure(measured):
    def fewer(frame):
        own = (frame["scope"] == "superpatch") & frame["input_masked"].astype(bool)
        masked = own & ((frame["region"] == "masked") | (frame["region"] == "visible"))
        late = frame["superpatch"] >= frame["superpatch"].max() - 20
        return frame[~(masked & late) & ~(own & (frame["metric"] == "ssim") & (frame["superpatch"] < 30))]

    table = reconstruction_table(_with(measured, fewer))
    all_of, left, with_ssim = (
        len(_of(_with(measured, fewer), "NEMESIS", *place)[0])
        for place in ((False, "psnr"), (True, "psnr", "masked"), (True, "ssim"))
    )
    assert len({all_of, left, with_ssim}) == 3
    assert [row[-1] for row in table.rows] == [str(left), "24", str(all_of), "24"]
    told = next(note for note in table.notes if note.startswith("Averaged"))
    assert f"NEMESIS on phantom, superpatch, {all_of} (hidden, PSNR pasted, " in told
    assert f"{with_ssim} (SSIM pasted)" in told and "stitched" not in told
    assert not any(note.startswith("Averaged") for note in reconstruction_table(measured).notes)


def test_datasets_are_told_apart_and_together(two_datasets):
    spec, root = two_datasets
    with (root / "tables" / "reconstruction.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["scope"] == "superpatch"][:3]
    assert [r["dataset"] for r in rows] == ["BTCV+b", "BTCV", "b"]
    frames = _of(read_measured(spec, root / "collected"), "MAESIL", True, "psnr", "masked")
    for row in rows:
        own = [f if "+" in row["dataset"] else f[f["dataset"] == row["dataset"]] for f in frames]
        estimate = mean_over_superpatches(own, resamples=spec["bootstrap"])
        told = [float(row[f"psnr_masked{end}"]) for end in ("", "_low", "_high")]
        assert told == pytest.approx([estimate.point, estimate.low, estimate.high])
        assert row["n_patients"] == ("24" if "+" in row["dataset"] else "12")


# -------------------------------------------------------------------------------------------------------------- MAESIL


def test_what_hides_is_judged_pasted_and_what_does_not_on_the_whole_input(report, measured):
    rows = {row["method"]: row for row in _rows(report, "maesil_reconstruction")}
    for label, masked in (("NEMESIS", True), ("Auto_encoder & co", False)):
        for metric in ("psnr", "ssim"):
            frames = _of(measured, label, masked, metric)
            estimate = mean_over_superpatches(frames, resamples=report.spec["bootstrap"])
            told = [float(rows[label][f"{metric}{end}"]) for end in ("", "_low", "_high")]
            assert told == pytest.approx([estimate.point, estimate.low, estimate.high])
        assert rows[label]["input_masked"] == str(masked)
    assert "Random ViT" not in rows
    table = maesil_table(measured)
    assert [row[2] for row in table.rows[:3]] == ["masked, pasted", "unmasked", "not said"]
    assert any("masked input, pasted" in note and "unmasked input" in note for note in table.notes)


def test_the_papers_figures_stand_beside_the_same_method(report):
    rows = {row["method"]: row for row in _rows(report, "maesil_reconstruction")}
    assert rows["NEMESIS"]["published_psnr"] == ""
    ae = rows["Auto_encoder & co"]  # the only label of the method `ae`
    assert (float(ae["published_psnr"]), float(ae["published_ssim"])) == (25.23, 0.97)
    assert float(ae["psnr_minus_published"]) == pytest.approx(float(ae["psnr"]) - 25.23, abs=1e-7)
    assert "AE" not in rows
    assert [rows[name]["status"] for name in ("VAE", "VQ-VAE", "MAESIL")] == ["not run"] * 3
    assert (rows["MAESIL"]["published_psnr"], rows["MAESIL"]["psnr"]) == ("30.28", "")


TABLES = {  # with LPIPS of what, in which columns
    maesil_table: {"LPIPS [95 % CI]": ("0.300", "1.300")},
    reconstruction_table: {"LPIPS pasted": ("0.300", None), "LPIPS": ("1.300", "1.300")},
}


def _with_lpips(measured):
    def add(frame):
        more = frame[(frame["metric"] == "psnr") & (frame["region"] == "whole")]
        value = 0.3 + ~more["input_masked"].astype(bool)
        return pd.concat([frame, more.assign(metric="lpips", value=value)])

    return replace(_with(measured, add), spec=measured.spec | {"lpips": {"network": "vgg", "sha256": "397923af"}})


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.__name__)
def test_lpips_is_a_number_once_it_is_measured_and_else_says_how_to_get_it(measured, table):
    without, with_it = table(measured), table(_with_lpips(measured))
    first = {line[0]: place for place, line in reversed(list(enumerate(without.rows)))}
    for column, values in TABLES[table].items():
        place = without.columns.index(column)
        for label, value in zip(("NEMESIS", "Auto_encoder & co"), values, strict=True):
            assert without.rows[first[label]][place] == ("–" if value is None else "not measured")
            assert with_it.rows[first[label]][place].split(" [")[0] == ("–" if value is None else value)
    assert any(
        note.startswith("LPIPS not measured: put https://") and "alexnet-owt-7be5be79.pth" in note for note in without.notes
    )
    assert any(note.startswith("LPIPS by VGG16") for note in with_it.notes)
    assert without.data.filter(regex="^lpips").isna().all(axis=None)
    small = replace(measured, spec=measured.spec | {"lpips": {"network": "alex", "sha256": "7be5be79"}})
    assert any("AlexNet takes slices of at least 31 voxels" in note for note in table(small).notes)


def test_the_papers_lpips_stands_beside_the_measured_one(measured):
    data = maesil_table(_with_lpips(measured)).data.set_index("method")
    assert data.loc["Auto_encoder & co", "lpips_minus_published"] == pytest.approx(1.3 - 0.39)
    assert data.loc["MAESIL", "published_lpips"] == 0.26


def test_psnr_by_dataset_with_the_papers_beside_maesil(two_datasets):
    spec, root = two_datasets
    measured = read_measured(spec, root / "collected")
    data = maesil_datasets_table(measured).data.set_index(["method", "dataset"])
    for dataset, patients in (("BTCV", 12), ("b", 12)):
        frames = [f[f["dataset"] == dataset] for f in _of(measured, "MAESIL", True, "psnr")]
        row = data.loc[("MAESIL", dataset)]
        assert row["psnr"] == pytest.approx(mean_over_superpatches(frames, resamples=200).point)
        assert (row["n_patients"], row["n_superpatches"]) == (patients, len(frames[0]))
    assert data.loc[("MAESIL", "BTCV"), "published_psnr"] == 32.09
    assert pd.isna(data.loc[("MAESIL", "b"), "published_psnr"])
    assert pd.isna(data.loc[("Auto_encoder & co", "BTCV"), "published_psnr"])
    left = data[data["status"] == "not run"]
    assert list(left.index) == [("MAESIL", "LIDC-IDRI"), ("MAESIL", "TotalSegmentator")]
    assert maesil_table(measured).data.set_index("method").loc["MAESIL", "published_psnr"] == 30.28


def test_an_experiment_that_reconstructs_nothing_says_so(report):
    runs = [entry for entry in report.spec["runs"] if entry["label"] == "Random ViT"]
    measured = read_measured(report.spec | {"runs": runs}, report.collected)
    for table in (maesil_table(measured), maesil_datasets_table(measured), reconstruction_table(measured)):
        assert table.caption == "No method of this experiment reconstructs its input."
        assert list(table.rows) == [] and table.data.empty


def test_names_are_escaped_in_latex(report):
    for name in ("main", "maesil_reconstruction", "maesil_datasets", "reconstruction"):
        text = (report.tables / f"{name}.tex").read_text()
        assert r"Auto\_encoder \& co" in text
        assert "Auto_encoder" not in text
    assert r"$\Delta$ AUROC" in (report.tables / "ablations.tex").read_text()
