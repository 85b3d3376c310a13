from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from report_experiment import make_experiment

from nemesis.config import Config
from nemesis.errors import NemesisError
from nemesis.evaluation.statistics import paired_difference, summarise
from nemesis.experiment import Experiment
from nemesis.report import TABLES
from nemesis.report.collect import collect
from nemesis.report.render import SUFFIXES, Table, interval, number
from nemesis.report.tables import holm, load_published, main_table, print_tables, read_predictions, tables


def _rows(report, name="main"):
    with (report.tables / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _tables(report, **changes):
    spec = report.spec | changes
    rows = pd.read_parquet(report.collected / "rows.parquet")
    return dict(zip(TABLES, tables(spec, rows, read_predictions(report.collected / "predictions.parquet", spec)), strict=True))


def test_every_table_is_printed_four_ways(report):
    assert {f.name for f in report.tables.iterdir()} == {f"{name}{suffix}" for name in TABLES for suffix in SUFFIXES}


def test_scores_are_those_of_the_statistics(report):
    predictions = read_predictions(report.collected / "predictions.parquet", report.spec)
    ours, theirs = predictions["NEMESIS"], predictions["Random ViT"]
    row = next(r for r in _rows(report) if (r["method"], r["protocol"]) == ("Random ViT", "linear"))
    estimate = summarise(theirs, "linear", 1.0, resamples=200, seed=0)
    assert float(row["auroc"]) == pytest.approx(estimate.point, rel=1e-9)
    assert float(row["auroc_low"]) == pytest.approx(estimate.low, rel=1e-9)
    gap = paired_difference(theirs, ours, "linear", 1.0, resamples=200, seed=0)
    assert float(row["difference"]) == pytest.approx(gap.point, rel=1e-9)
    assert float(row["difference_high"]) == pytest.approx(gap.high, rel=1e-9)


def test_published_figures_stand_beside_the_same_protocol_only(report):
    rows = {(r["method"], r["protocol"]): r for r in _rows(report)}
    measured = rows["NEMESIS", "linear"]
    assert float(measured["published_auroc"]) == 0.9633
    assert float(measured["auroc_minus_published"]) == pytest.approx(float(measured["auroc"]) - 0.9633, abs=1e-8)
    assert rows["NEMESIS", "knn"]["published_auroc"] == rows["Random ViT", "linear"]["published_auroc"] == ""
    for method in ("NEMESIS", "Random ViT", "SuPreM", "VoCo", "ResNet3D-50"):
        row = rows[method, "finetune"]
        assert row["status"] == "not run"
        assert row["auroc"] == row["auroc_minus_published"] == ""
        assert row["published_auroc"]


def test_a_variant_of_a_method_does_not_take_its_published_figure(report):
    runs = [dict(entry) for entry in report.spec["runs"]]
    runs[1]["label"] = "NEMESIS without noise"
    main = _tables(report, runs=runs)["main"].data.set_index(["method", "protocol"])
    assert main.loc[("NEMESIS", "linear"), "published_auroc"] == 0.9633
    assert pd.isna(main.loc[("NEMESIS without noise", "linear"), "published_auroc"])
    assert main.loc[("NEMESIS without noise", "linear"), "difference"] is not None


def test_notes_tell_other_data_leakage_seeds_and_organs(report):
    main = (report.tables / "main.md").read_text()
    assert "phantom instead of BTCV" in main
    assert "share no patient" in main
    assert "Random ViT 0 (seed spread not measured)" in main
    assert "NEMESIS 0, 1 (SD of AUROC" in main
    assert "left out: gallbladder" in main
    fractions = (report.tables / "label_fractions.md").read_text()
    assert "chance (0.5): 3 at 25 %" in fractions
    assert "25 %: 2 patients, 18 superpatches, 2 draws" in fractions
    assert "100 % of cells at 25 %" in fractions
    other = _tables(report, transductive=4, datasets=["BTCV"])["main"]
    assert "TRANSDUCTIVE: encoders were pretrained on scans of 4 evaluation patients, too" in other.caption
    assert "instead of" not in "".join(other.notes)


def test_no_interval_is_printed_for_a_handful_of_patients(report):
    rows = pd.read_parquet(report.collected / "rows.parquet")
    predictions = read_predictions(report.collected / "predictions.parquet", report.spec)
    few = {
        label: [frame[frame["patient"].isin([f"phantom/s{n:02}" for n in range(4)])] for frame in frames]
        for label, frames in predictions.items()
    }
    main = tables(report.spec, rows, few)[0]
    assert "[" not in main.rows[0][2]
    assert "4 patients, at least 5 are needed" in "".join(main.notes)


def test_reconstruction_takes_the_mean_over_seeds(report):
    row = _rows(report, "reconstruction")[0]
    assert float(row["psnr_masked"]) == 21.625  # seeds 21.5 and 21.75
    assert float(row["psnr_visible_mean"]) == 18.25
    assert float(row["psnr_masked_easy_in"]) == 23.625
    assert float(row["psnr_stitched"]) == 23.875
    other = _rows(report, "reconstruction")[1]
    assert other["psnr_masked"] == ""  # hides nothing
    assert float(other["psnr_unmasked_input"]) == 24


def test_easy_negatives_are_told_with_the_fill_beside_them(report):
    table = _tables(report)["reconstruction"]
    place = table.columns.index("masked / fill with easy")
    assert table.rows[0][place] == "23.62 / 20.25"
    assert table.rows[1][place] == "–"
    assert float(_rows(report, "reconstruction")[0]["psnr_visible_mean_easy_in"]) == 20.25


def test_every_number_of_superpatches_is_that_of_its_figure(report):
    rows = pd.read_parquet(report.collected / "rows.parquet")
    main = (rows["scope"] == "superpatch") & (rows["easy_negatives"] == "out") & (rows["input_masked"] == True)  # noqa: E712
    rows.loc[main & rows["metric"].isin(["psnr", "psnr_visible_mean"]) & (rows["region"] == "masked"), "n_superpatches"] = 80
    rows.loc[main & (rows["metric"] == "ssim"), "n_superpatches"] = 70
    rows.loc[main & (rows["region"] == "visible"), "n_superpatches"] = 80
    table = tables(report.spec, rows, read_predictions(report.collected / "predictions.parquet", report.spec))[2]
    assert [row[-1] for row in table.rows] == ["80", "90"]
    told = "NEMESIS on phantom 90 (hidden, PSNR pasted, PSNR of unmasked input, SSIM of unmasked input), 70 (SSIM pasted)."
    assert told in next(note for note in table.notes if note.startswith("Superpatches averaged"))
    assert not any(note.startswith("Superpatches averaged") for note in _tables(report)["reconstruction"].notes)


def test_stitched_volumes_are_counted(report):
    assert "Stitched: 1 volume." in _tables(report)["reconstruction"].notes
    rows = pd.read_parquet(report.collected / "rows.parquet")
    stitched = rows["scope"] == "stitched"
    rows.loc[stitched, "n_patients"] = 2
    several = pd.concat([rows, rows[stitched].assign(dataset="other", n_patients=1)])
    table = tables(report.spec, several, read_predictions(report.collected / "predictions.parquet", report.spec))[2]
    assert "Stitched: other 1 volume, phantom 2 volumes." in table.notes


@pytest.mark.parametrize(("pretraining", "shared"), [("ab", 0), ("bcd", 2)])
def test_transductive_is_what_the_pools_share(pretraining, shared, tmp_path):
    """Whatever the configuration allows."""
    config = Config.model_validate(
        {
            "experiment": "e",
            "datasets": [{"reader": "phantom"}],
            "pools": {"evaluation": 3, "transductive": True},
            "methods": ["ae"],
        }
    )
    pools = ([SimpleNamespace(dataset="ct", patient=p, case=p) for p in names] for names in (pretraining, "cde"))
    experiment = Experiment(config, tmp_path, [], *pools, tmp_path / "p.json", tmp_path / "e.json", [])
    assert experiment.report_spec()["transductive"] == shared


def test_a_method_that_ran_but_cannot_be_scored_says_so(report):
    rows = pd.read_parquet(report.collected / "rows.parquet")
    predictions = read_predictions(report.collected / "predictions.parquet", report.spec)
    unscorable = {label: [frame.assign(truth=False) for frame in frames] for label, frames in predictions.items()}
    main, fractions, _ = tables(report.spec, rows, unscorable)
    assert {(row[1], row[2]) for row in main.rows} == {
        ("linear probe", "not scorable"), ("k-NN", "not scorable"), ("fine-tune", "not run"),
    }  # fmt: skip
    assert set(main.data["status"]) == {"not scorable", "not run"}
    assert fractions.rows[0][3:] == ["not scorable"] * 2
    lacking = predictions | {"Random ViT": [frame[frame["protocol"] != "knn"] for frame in predictions["Random ViT"]]}
    del lacking["NEMESIS"], lacking["Auto_encoder & co"]
    spec = report.spec | {"runs": [e for e in report.spec["runs"] if e["label"] == "Random ViT"]}
    assert main_table(spec, rows, lacking, load_published(), ["knn"], 1.0).rows[0][2] == "not run"


def test_no_difference_is_taken_between_figures_at_different_shares_of_labels(report):
    rows = pd.read_parquet(report.collected / "rows.parquet")
    predictions = read_predictions(report.collected / "predictions.parquet", report.spec)
    fewer = {label: [f[f["label_fraction"] < 1] for f in frames] for label, frames in predictions.items()}
    main = tables(report.spec, rows, fewer)[0]
    assert main.rows[0][3:5] == ("0.9633", "–")
    assert main.data[["auroc_minus_published", "f1_minus_published"]].isna().all(axis=None)
    assert any("at 100 % of the labels, measured ones at 25 %" in note for note in main.notes)


def test_datasets_are_told_apart_and_together(tmp_path):
    spec = make_experiment(tmp_path, ("a", "b", "a+b"))
    collect(spec, tmp_path / "collected")
    print_tables(spec, tmp_path / "collected", tmp_path / "tables")
    with (tmp_path / "tables" / "reconstruction.csv").open(newline="") as file:
        assert [r["dataset"] for r in csv.DictReader(file)][:3] == ["a+b", "a", "b"]


def test_clocks_never_reach_a_table_and_a_repeat_gives_the_same_bytes(tmp_path):
    spec = make_experiment(tmp_path)

    def printed(name):
        collect(spec, tmp_path / name)
        print_tables(spec, tmp_path / name, tmp_path / f"{name}-tables")
        return {f.name: f.read_bytes() for f in (tmp_path / f"{name}-tables").iterdir()}

    first = printed("first")
    for entry in spec["runs"]:
        (Path(entry["folder"]) / "timing.json").write_text(json.dumps({"seconds": 99.0}))
    assert printed("second") == first
    kept = ("runs", "rows", "predictions", "curves")
    for name in kept:
        assert (tmp_path / "first" / f"{name}.parquet").read_bytes() == (tmp_path / "second" / f"{name}.parquet").read_bytes()
    timings = pd.read_parquet(tmp_path / "second" / "timings.parquet")
    assert 99.0 in set(timings["value"])
    assert "cpu" in " ".join(timings["text"].dropna())


def test_collect_names_every_missing_file(tmp_path):
    spec = make_experiment(tmp_path)
    gone = [Path(spec["runs"][0]["evaluation"]) / "rows.parquet", Path(spec["runs"][2]["folder"]) / "run.json"]
    for path in gone:
        path.unlink()
    with pytest.raises(NemesisError) as error:
        collect(spec, tmp_path / "collected")
    assert {fault.where for fault in error.value.faults} == {str(path) for path in gone}


def test_runs_are_flattened(report):
    runs = pd.read_parquet(report.collected / "runs.parquet")
    assert list(runs["identity.settings.embed_dim"]) == ["48"] * 4
    assert json.loads(runs["identity_json"][0])["method"] == "nemesis"


def test_words_are_escaped():
    data = pd.DataFrame({"a": ['x "y", z'], "b": [0.1234567890123]})
    table = Table("t", "A & B", "50 % of <i>", ("a_b", "c|d"), [("<b>", "−0.1")], ["σ"], data, text_columns=1)
    assert r"A \& B. 50 \% of $<$i$>$" in table.latex()
    assert r"a\_b" in table.latex()
    assert "$-$0.1" in table.latex()
    assert "&lt;b&gt;" in table.html()
    assert "<i>" not in table.html()
    assert "c\\|d" in table.markdown()
    assert table.csv() == 'a,b\n"x ""y"", z",0.123456789\n'


def test_numbers_and_intervals():
    assert number(-0.0004, 3, sign=True) == "+0.000"
    assert number(-0.0004, 3) == "0.000"
    assert number(-1.25, 1) == "−1.2"
    assert number(float("nan"), 2) == number(None, 2) == "–"
    assert interval({"x": 0.5, "x_low": 0.4, "x_high": 0.6}, "x", 2) == "0.50 [0.40, 0.60]"
    assert interval({"x": 0.5, "x_low": None, "x_high": None}, "x", 2) == "0.50"


def test_holm():
    assert holm([0.01, None, 0.04, 0.03]) == [pytest.approx(0.03), None, pytest.approx(0.06), pytest.approx(0.06)]
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_no_job_of_the_report_imports_what_is_heavy(report):
    code = """
import json, sys
from pathlib import Path
spec, root = json.loads(sys.argv[1]), Path(sys.argv[2])
from nemesis.report.collect import collect
from nemesis.report.tables import print_tables
from nemesis.report.page import write_page
collect(spec, root / "c")
print_tables(spec, root / "c", root / "t")
write_page(spec, root / "t", Path(sys.argv[3]), root / "p" / "index.html")
assert not {"torch", "monai", "matplotlib", "mlflow"} & set(sys.modules), "collect, tables or page"
from nemesis.report.figures import draw_figures
draw_figures(spec, root / "c", root / "t", root / "f")
import mlflow, nemesis.tracking
assert not {"torch", "monai"} & set(sys.modules), "figures or tracking"
"""
    command = [sys.executable, "-c", code, json.dumps(report.spec), str(report.root / "light"), str(report.figures)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
