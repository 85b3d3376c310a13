"""The printed reconstructions: what they are means of, which input was judged, what stands beside them."""

from __future__ import annotations

import csv
from dataclasses import replace

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


def _of(measured, label, masked, metric, region="whole"):
    """Of each run the superpatches above the foreground floor."""
    frames = [measured.reconstructions[entry["run"]] for entry in measured.labels("methods")[label]]
    return [f[(f["input_masked"] == masked) & (f["metric"] == metric) & (f["region"] == region) & ~f["easy"]] for f in frames]


# ------------------------------------------------------------------------------------------------------------- details


def test_reconstruction_takes_the_mean_over_seeds(report, measured):
    row = _rows(report)[0]
    frames = _of(measured, "NEMESIS", True, "psnr", "masked")
    first, second = (frame["value"].mean() for frame in frames)
    assert second - first == pytest.approx(0.25)
    assert float(row["psnr_masked"]) == pytest.approx((first + second) / 2)
    estimate = mean_over_superpatches(frames, report.spec["bootstrap"])
    assert [float(row[f"psnr_masked_{end}"]) for end in ("low", "high")] == pytest.approx([estimate.low, estimate.high])
    assert float(row["psnr_visible_mean"]) == pytest.approx(float(row["psnr_masked"]) - 3)
    assert float(row["psnr_stitched"]) == pytest.approx(float(row["psnr_masked_easy_in"]) + 2.25)
    other = _rows(report)[1]
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
    assert table.rows[1][place] == "–"


def test_every_number_of_superpatches_is_that_of_its_figure(measured):
    rows = measured.rows.copy()
    main = (rows["scope"] == "superpatch") & (rows["easy_negatives"] == "out") & (rows["input_masked"] == True)  # noqa: E712
    rows.loc[main & rows["metric"].isin(["psnr", "psnr_visible_mean"]) & (rows["region"] == "masked"), "n_superpatches"] = 80
    rows.loc[main & (rows["metric"] == "ssim"), "n_superpatches"] = 70
    rows.loc[main & (rows["region"] == "visible"), "n_superpatches"] = 80
    table = reconstruction_table(replace(measured, rows=rows))
    assert [row[-1] for row in table.rows] == ["80", "228"]
    told = "NEMESIS on phantom 228 (hidden, PSNR pasted, PSNR of unmasked input, SSIM of unmasked input), 70 (SSIM pasted)."
    assert told in next(note for note in table.notes if note.startswith("Superpatches averaged"))
    assert not any(note.startswith("Superpatches averaged") for note in reconstruction_table(measured).notes)


def test_stitched_volumes_are_counted(measured):
    assert "Stitched: 1 volume." in reconstruction_table(measured).notes
    rows = measured.rows.copy()
    stitched = rows["scope"] == "stitched"
    rows.loc[stitched, "n_patients"] = 2
    several = pd.concat([rows, rows[stitched].assign(dataset="other", n_patients=1)])
    assert "Stitched: other 1 volume, phantom 2 volumes." in reconstruction_table(replace(measured, rows=several)).notes


def test_datasets_are_told_apart_and_together(two_datasets):
    spec, root = two_datasets
    with (root / "tables" / "reconstruction.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))[:3]
    assert [r["dataset"] for r in rows] == ["BTCV+b", "BTCV", "b"]
    frames = _of(read_measured(spec, root / "collected"), "MAESIL", True, "psnr", "masked")
    for row in rows:
        own = [f if "+" in row["dataset"] else f[f["dataset"] == row["dataset"]] for f in frames]
        estimate = mean_over_superpatches(own, spec["bootstrap"])
        told = [float(row[f"psnr_masked{end}"]) for end in ("", "_low", "_high")]
        assert told == pytest.approx([estimate.point, estimate.low, estimate.high])
        assert row["n_patients"] == ("24" if "+" in row["dataset"] else "12")


# -------------------------------------------------------------------------------------------------------------- MAESIL


def test_what_hides_is_judged_pasted_and_what_does_not_on_the_whole_input(report, measured):
    rows = {row["method"]: row for row in _rows(report, "maesil_reconstruction")}
    for label, masked in (("NEMESIS", True), ("Auto_encoder & co", False)):
        for metric in ("psnr", "ssim"):
            frames = _of(measured, label, masked, metric)
            estimate = mean_over_superpatches(frames, report.spec["bootstrap"])
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


def test_lpips_is_a_column_once_it_is_measured(measured):
    table = maesil_table(measured)
    assert "LPIPS" not in table.columns and not any("lpips" in name for name in table.data)
    row = {"dataset": "phantom", "metric": "lpips", "scope": "superpatch", "region": "whole", "easy_negatives": "out"}
    runs = [entry["run"] for entry in measured.labels("methods")["Auto_encoder & co"]]
    more = [row | {"run": run, "input_masked": masked, "value": 0.3 + masked} for run in runs for masked in (False, True)]
    table = maesil_table(replace(measured, rows=pd.concat([measured.rows, pd.DataFrame(more)])))
    assert [line[table.columns.index("LPIPS")] for line in table.rows[:3]] == ["–", "0.300", "–"]
    assert table.data.iloc[1]["lpips_minus_published"] == pytest.approx(0.3 - 0.39)


def test_psnr_by_dataset_with_the_papers_beside_maesil(two_datasets):
    spec, root = two_datasets
    measured = read_measured(spec, root / "collected")
    data = maesil_datasets_table(measured).data.set_index(["method", "dataset"])
    for dataset, patients in (("BTCV", 12), ("b", 12)):
        frames = [f[f["dataset"] == dataset] for f in _of(measured, "MAESIL", True, "psnr")]
        row = data.loc[("MAESIL", dataset)]
        assert row["psnr"] == pytest.approx(mean_over_superpatches(frames, 200).point)
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
    assert r"$\Delta$ AUROC to as configured [95 \% CI]" in (report.tables / "ablations.tex").read_text()
