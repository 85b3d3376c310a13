from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_experiment import make_experiment

from nemesis.config import Config
from nemesis.errors import NemesisError
from nemesis.evaluation.statistics import Scores, paired_difference, summarise
from nemesis.experiment import Experiment
from nemesis.report import TABLES
from nemesis.report.collect import as_collected, collect, collected_spec
from nemesis.report.render import SUFFIXES, Table, interval, number
from nemesis.report.tables import Measured, print_tables, read_measured, tables
from nemesis.report.tables.pieces import holm
from nemesis.runs import Material


def _rows(report, name="main"):
    with (report.tables / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _measured(report, **changes) -> Measured:
    return read_measured(report.spec | changes, report.collected)


def _tables(measured):
    return {table.name: table for table in tables(measured)}


def _with_predictions(measured, change):
    """Every run's predictions changed."""
    return replace(measured, predictions={run: Scores(change(s.predictions)) for run, s in measured.predictions.items()})


def test_every_table_is_printed_four_ways(report):
    assert {f.name for f in report.tables.iterdir()} == {f"{name}{suffix}" for name in TABLES for suffix in SUFFIXES}
    assert [table.name for table in tables(_measured(report))] == list(TABLES)


def test_scores_are_those_of_the_statistics(report):
    measured = _measured(report)
    ours, theirs = (measured.scores(measured.labels("methods")[label]) for label in ("NEMESIS", "Random ViT"))
    row = next(r for r in _rows(report) if (r["method"], r["protocol"]) == ("Random ViT", "linear"))
    estimate = summarise(theirs, "linear", 1.0, resamples=report.spec["bootstrap"], seed=0)
    assert float(row["auroc"]) == pytest.approx(estimate.point, rel=1e-9)
    assert float(row["auroc_low"]) == pytest.approx(estimate.low, rel=1e-9)
    gap = paired_difference(theirs, ours, "linear", 1.0, resamples=report.spec["bootstrap"], seed=0)
    assert float(row["difference"]) == pytest.approx(gap.point, rel=1e-9)
    assert float(row["difference_high"]) == pytest.approx(gap.high, rel=1e-9)


def test_rows_of_cells_and_variants_do_not_reach_the_methods(report):
    measured = _measured(report)
    others = measured.rows["run"].isin([e["run"] for e in report.spec["runs"] if e["part"] != "methods"])
    rows = measured.rows.copy()
    rows.loc[others & rows["metric"].isin(["training_superpatches", "prevalence", "chance_organs"]), "value"] = 99
    changed = _tables(replace(measured, rows=rows))
    for name in ("main", "label_fractions", "data"):
        assert changed[name].markdown() == (report.tables / f"{name}.md").read_text()


def test_published_figures_stand_beside_the_same_protocol_only(report):
    rows = {(r["method"], r["protocol"]): r for r in _rows(report)}
    measured = rows["NEMESIS", "linear"]
    assert float(measured["published_auroc"]) == 0.9633
    assert float(measured["auroc_minus_published"]) == pytest.approx(float(measured["auroc"]) - 0.9633, abs=1e-8)
    assert rows["NEMESIS", "knn"]["published_auroc"] == rows["Random ViT", "linear"]["published_auroc"] == ""
    tuned = rows["NEMESIS", "finetune"]
    assert tuned["status"] == "measured" and float(tuned["published_auroc"]) == 0.9702
    for method in ("SuPreM", "VoCo", "ResNet3D-50"):
        row = rows[method, "finetune"]
        assert row["status"] == "not run"
        assert row["auroc"] == row["auroc_minus_published"] == ""
        assert row["published_auroc"]


def test_a_variant_of_a_method_does_not_take_its_published_figure(report):
    runs = [dict(entry) for entry in report.spec["runs"]]
    runs[1]["label"] = "NEMESIS without noise"
    main = _tables(_measured(report, runs=runs))["main"].data.set_index(["method", "protocol"])
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
    other = _tables(_measured(report, transductive=4, datasets=["BTCV"]))["main"]
    assert "TRANSDUCTIVE: encoders were pretrained on scans of 4 evaluation patients, too" in other.caption
    assert "instead of" not in "".join(other.notes)


def test_no_interval_is_printed_for_a_handful_of_patients(report):
    few = [f"phantom/s{n:02}" for n in range(4)]
    main = _tables(_with_predictions(_measured(report), lambda frame: frame[frame["patient"].isin(few)]))["main"]
    assert "[" not in main.rows[0][3]
    assert "4 patients, at least 12 are needed" in "".join(main.notes)


def test_a_table_speaks_of_intervals_only_where_one_is_printed(report):
    few = [f"phantom/s{n:02}" for n in range(4)]
    measured = _measured(report)
    small = {run: frame[frame["patient"].isin(few)] for run, frame in measured.reconstructions.items()}
    tuned = {run: frame[frame["patient"].isin(few)] if len(frame) else frame for run, frame in measured.segmentations.items()}
    peeked = {run: Scores(s.predictions[s.predictions["patient"].isin(few)]) for run, s in measured.peeked.items()}
    small_measured = replace(measured, reconstructions=small, segmentations=tuned, peeked=peeked)
    fewer = _with_predictions(small_measured, lambda frame: frame[frame["patient"].isin(few)])
    for found, expected in ((fewer, set()), (measured, set(TABLES) - {"data", "pretraining", "convergence", "cost"})):
        for printed in (Table.markdown, Table.latex, Table.html):
            assert {name for name, table in _tables(found).items() if "% CI]" in printed(table)} == expected


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
    experiment = Experiment(config, tmp_path, [], *pools, tmp_path / "p.json", tmp_path / "e.json", Material("p"), [])
    assert experiment.report_spec()["transductive"] == shared


def test_planning_counts_patients_scans_and_labels_of_both_pools(tmp_path):
    config = Config.model_validate(
        {
            "experiment": "e",
            "datasets": [{"reader": "phantom", "name": name} for name in ("a", "b")],
            "pools": {"evaluation": 3},
            "methods": ["ae"],
        }
    )
    pools = (
        [SimpleNamespace(dataset=d, patient=p, case=f"{p}{n}", kind=k) for n, (d, p, k) in enumerate(cases)]
        for cases in (
            [("a", "x", "none"), ("a", "x", "none"), ("a", "y", "pseudo")],
            [("a", "z", "partial"), ("b", "u", "exhaustive"), ("b", "v", "partial")],
        )
    )
    datasets = [SimpleNamespace(config=dataset) for dataset in config.datasets]
    experiment = Experiment(config, tmp_path, datasets, *pools, tmp_path / "p.json", tmp_path / "e.json", Material("p"), [])
    assert experiment.report_spec()["data"] == [
        {"dataset": "a", "pool": "pretraining", "patients": 2, "scans": 3, "kinds": {"none": 2, "pseudo": 1}},
        {"dataset": "a", "pool": "evaluation", "patients": 1, "scans": 1, "kinds": {"partial": 1}},
        {"dataset": "b", "pool": "evaluation", "patients": 2, "scans": 2, "kinds": {"exhaustive": 1, "partial": 1}},
    ]


def test_data_are_counted_by_dataset_and_pool(tmp_path):
    spec = make_experiment(tmp_path, ("BTCV", "LUNA16"))
    collect(spec, tmp_path / "collected")
    measured = read_measured(spec, tmp_path / "collected")
    table = _tables(measured)["data"]
    data = table.data.set_index(["dataset", "pool"])
    assert list(data.index[:4]) == [(d, p) for d in ("BTCV", "LUNA16") for p in ("pretraining", "evaluation")]
    frame = measured.predictions[spec["runs"][0]["run"]].predictions
    own = frame[frame["patient"].astype(str).str.startswith("LUNA16/")]
    row = data.loc[("LUNA16", "evaluation")]
    assert (row["superpatches"], row["superpatches_above_floor"]) == (
        own["superpatch"].nunique(), own[~own["easy"]]["superpatch"].nunique(),
    )  # fmt: skip
    assert row["superpatches"] == 144  # half of the patients
    assert pd.isna(data.loc[("LUNA16", "pretraining"), "superpatches"])
    first = own[(own["organ"] == "liver") & (own["protocol"] == "knn") & (own["label_fraction"] == 1) & ~own["easy"]]
    assert f"LUNA16: liver 12, {first['truth'].mean():.2f}; spleen 12" in "".join(table.notes)
    assert data.loc[("BTCV", "pretraining"), "published_nemesis"].startswith("140 scans with HNSCC")
    assert data.loc[("BTCV", "evaluation"), "published_nemesis"] == "30 scans"
    assert list(data.loc["BTCV", "published_maesil_scans"]) == [30, 30]
    assert list(table.data[table.data["status"] == "not used"]["dataset"]) == ["TotalSegmentator", "LIDC-IDRI"]


def test_the_caption_says_how_many_patients_the_fine_tuned_rows_are_of(report):
    """They were tested on three folds of five."""
    found = _tables(_measured(report))
    rows = found["main"].data.set_index("protocol")
    patients, tuned = (int(rows.loc[name, "n_patients"].max()) for name in ("linear", "finetune"))
    assert tuned < patients
    for name in ("main", "label_fractions"):
        assert f" {patients} patients, " in found[name].caption
        assert f" scored. Fine-tuned rows: {tuned} patients, " in found[name].caption


def test_what_was_not_run_is_no_reason_for_a_missing_interval(report):
    found = _tables(_measured(report))["label_fractions"]
    assert any("not run" in row for row in found.rows)
    assert not any("no organ has both classes" in note for note in found.notes)


def test_a_method_that_ran_but_cannot_be_scored_says_so(report):
    measured = _measured(report)
    found = _tables(_with_predictions(measured, lambda frame: frame.assign(truth=False)))
    main, fractions = found["main"], found["label_fractions"]
    assert {(row[1], row[3]) for row in main.rows} == {
        ("linear probe", "not scorable"), ("k-NN", "not scorable"), ("fine-tuned", "not scorable"), ("fine-tuned", "not run"),
    }  # fmt: skip
    assert set(main.data["status"]) == {"not scorable", "not run"}
    assert fractions.rows[0][4:] == ["not scorable"] * 2
    assert found["ablations"].rows[0][7] == found["sweep"].rows[0][3] == "not scorable"
    run = next(entry["run"] for entry in report.spec["runs"] if entry["label"] == "Random ViT")
    linear = measured.predictions[run].predictions
    lacking = measured.predictions | {run: Scores(linear[linear["protocol"] != "knn"])}
    main = _tables(replace(measured, predictions=lacking))["main"]
    assert [row[3] for row in main.rows if row[:2] == ("Random ViT", "k-NN")] == ["not run"]


def test_no_difference_is_taken_between_figures_at_different_shares_of_labels(report):
    def fewer(frame):
        return frame[frame["label_fraction"] < 1] if frame["label_fraction"].min() < 1 else frame.assign(label_fraction=0.25)

    found = _tables(_with_predictions(_measured(report), fewer))
    main = found["main"]
    assert main.rows[0][4:6] == ("0.9633", "–")
    assert main.data[["auroc_minus_published", "f1_minus_published"]].isna().all(axis=None)
    for name in ("main", "sweep"):
        assert any("at 100 % of the labels, measured ones at 25 %" in note for note in found[name].notes)


def test_clocks_reach_the_table_of_cost_alone_and_a_repeat_gives_the_same_bytes(tmp_path):
    spec = make_experiment(tmp_path)

    def printed(name):
        collect(spec, tmp_path / name)
        print_tables(spec, tmp_path / name, tmp_path / f"{name}-tables")
        return {f.name: f.read_bytes() for f in (tmp_path / f"{name}-tables").iterdir()}

    first = printed("first")
    for entry in spec["runs"]:
        (Path(entry["folder"]) / "timing.json").write_text(json.dumps({"seconds": 99.0}))
    second = printed("second")
    assert {Path(name).stem for name in first if second[name] != first[name]} == {"cost"}
    kept = ("runs", "rows", "predictions", "reconstructions", "curves")
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


def test_what_was_collected_in_part_has_no_specification(tmp_path):
    spec = make_experiment(tmp_path)
    collect(spec, tmp_path / "collected")
    assert as_collected(spec, tmp_path / "collected") == spec
    (Path(spec["runs"][0]["folder"]) / "curve.jsonl").write_text("no JSON")
    with pytest.raises(json.JSONDecodeError):
        collect(spec, tmp_path / "collected")
    with pytest.raises(NemesisError, match="holds no finished experiment"):
        collected_spec(tmp_path / "collected")


def test_runs_are_flattened(report):
    runs = pd.read_parquet(report.collected / "runs.parquet")
    assert list(runs["identity.settings.embed_dim"]) == ["48"] * 6 + ["96"] * 2 + ["48"] * 5
    assert json.loads(runs["identity_json"][0])["method"] == "nemesis"


def test_words_are_escaped():
    data = pd.DataFrame({"a": ['x "y", z'], "b": [0.1234567890123]})
    table = Table("t", "A & B", "50 % of <i>", ("a_b", "c|d"), [("<b>", "−0.1")], ["σ"], data, text_columns=1)
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


@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=8))
def test_holm_by_its_definition(values):
    """The smallest level at which the step-down procedure, from the smallest p on, rejects each hypothesis."""
    known = [p for p in values if p is not None]

    def rejected(level):
        for rank, p in enumerate(sorted(known)):
            if p > level / (len(known) - rank):
                return sorted(known)[:rank]
        return known

    for p, adjusted in zip(values, holm(values), strict=True):
        if p is None:
            assert adjusted is None
            continue
        levels = sorted({min(1.0, other * factor) for other in known for factor in range(1, len(known) + 1)} | {1.0})
        level = next((level for level in levels if p in rejected(level * (1 + 1e-12))), 1.0)
        assert adjusted == pytest.approx(level)


def test_holm():
    assert holm([0.01, None, 0.04, 0.03]) == [pytest.approx(0.03), None, pytest.approx(0.06), pytest.approx(0.06)]
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_no_job_of_the_report_imports_what_is_heavy(report):
    code = """
import json, sys
from pathlib import Path
spec, root = json.loads(sys.argv[1]), Path(sys.argv[2])
from nemesis.report.collect import collect
from nemesis.runs import Material
from nemesis.report.tables import print_tables
from nemesis.report.page import write_page
collect(spec, root / "c")
print_tables(spec, root / "c", root / "t")
write_page(spec, root / "t", Path(sys.argv[3]), root / "p" / "index.html")
assert not {"torch", "monai", "matplotlib", "mlflow"} & set(sys.modules), "collect, tables or page"
from nemesis.report.figures import draw_figures
draw_figures(spec, root / "c", root / "t", root / "f")
import mlflow, nemesis.tracking.replay
assert not {"torch", "monai"} & set(sys.modules), "figures or tracking"
"""
    command = [sys.executable, "-c", code, json.dumps(report.spec), str(report.root / "light"), str(report.figures)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
