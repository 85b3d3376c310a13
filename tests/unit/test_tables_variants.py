"""The printed ablations and the sweep: every figure can be traced, choices are honest."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from report_experiment import FOLDS
from scipy import stats

from nemesis.evaluation.statistics import mean_over_superpatches, paired_difference, summarise
from nemesis.report.tables import Measured, read_measured
from nemesis.report.tables.ablations import ablations_table
from nemesis.report.tables.sweep import sweep_table


def _measured(report, **changes) -> Measured:
    return read_measured(report.spec | changes, report.collected)


def _rows(report, name):
    with (report.tables / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _with_identity(measured, label, **settings):
    """The identity of an ablation's runs changed."""
    entries = measured.labels("ablations")[label]
    identities = {run: json.loads(json.dumps(identity)) for run, identity in measured.identities.items()}
    for entry in entries:
        identities[entry["run"]]["settings"] |= settings
    return replace(measured, identities=identities)


def _published(measured):
    data = ablations_table(measured).data
    return dict(zip(data["variant"], data["published_psnr"], strict=True))


# ---------------------------------------------------------------------------------------------------------- ablations


def test_ablations_start_as_configured_and_keep_groups_together(report):
    runs = report.spec["runs"]
    shuffled = [*runs[:10], runs[11], runs[10], runs[12]]
    assert [e["label"] for e in shuffled[8:]] == ["as configured", "plane alone", "no noise", "axis alone", "superpatch 32³"]
    table = ablations_table(_measured(report, runs=shuffled))
    variants = [row[1] for row in table.rows]
    assert variants == ["as configured", "plane alone", "axis alone", "no noise", "superpatch 32³"]
    assert table.rows[0][8] == "reference"


def test_figures_of_a_variant_are_those_of_the_statistics(report):
    measured = _measured(report)
    labels = measured.labels("ablations")
    row = next(r for r in _rows(report, "ablations") if r["variant"] == "axis alone")
    own, base = measured.scores(labels["axis alone"]), measured.scores(labels["as configured"])
    for name, estimate in (
        ("auroc", summarise(own, "linear", 1.0, resamples=report.spec["bootstrap"])),
        ("difference", paired_difference(own, base, "linear", 1.0, resamples=report.spec["bootstrap"])),
    ):
        told = [float(row[f"{name}{end}"]) for end in ("", "_low", "_high")]
        assert told == pytest.approx([estimate.point, estimate.low, estimate.high], rel=1e-9)
    every = measured.reconstructions[labels["axis alone"][0]["run"]].query("scope == 'superpatch'")
    masked = every[every["input_masked"] & (every["region"] == "masked") & (every["metric"] == "psnr") & ~every["easy"]]
    psnr = mean_over_superpatches([masked], resamples=report.spec["bootstrap"])
    assert float(row["psnr_masked"]) == pytest.approx(masked["value"].mean(), rel=1e-9)
    assert float(row["psnr_masked_high"]) == pytest.approx(psnr.high, rel=1e-9)
    assert float(row["effective_mask_ratio"]) == 0.75


def test_an_interval_by_hand(report):
    """Patients drawn again and again, their superpatches pooled."""
    measured = _measured(report)
    every = measured.reconstructions[measured.labels("ablations")["no noise"][0]["run"]].query("scope == 'superpatch'")
    ssim = every[every["input_masked"] & (every["metric"] == "ssim") & ~every["easy"]].astype({"patient": str})
    by_patient = [group["value"].to_numpy() for _, group in ssim.groupby("patient")]
    drawn = np.random.default_rng(0).multinomial(24, np.full(24, 1 / 24), size=report.spec["bootstrap"])
    means = [np.concatenate([by_patient[p] for p in np.repeat(np.arange(24), weight)]).mean() for weight in drawn]
    row = next(r for r in _rows(report, "ablations") if r["variant"] == "no noise")
    told = [float(row["ssim_whole_low"]), float(row["ssim_whole_high"])]
    half = stats.t.ppf(0.975, 23) * np.std(means) * np.sqrt(24 / 23)
    assert told == pytest.approx([np.concatenate(by_patient).mean() + end for end in (-half, half)], rel=1e-9)


def test_p_values_are_adjusted_over_the_variants_that_are_compared(report):
    rows = [r for r in _rows(report, "ablations") if r["difference_p"]]
    assert [r["variant"] for r in rows] == ["plane alone", "axis alone", "no noise"]
    smallest = min(float(r["difference_p"]) for r in rows)
    assert min(float(r["difference_p_holm"]) for r in rows) == pytest.approx(3 * smallest)


def test_other_superpatches_are_not_compared(report):
    table = ablations_table(_measured(report))
    row = table.data[table.data["variant"] == "superpatch 32³"].iloc[0]
    assert row["auroc"] > 0 and pd.isna(row["difference"]) and pd.isna(row["difference_p_holm"])
    told = (
        "Superpatches of another size are other superpatches: no difference is taken of superpatch 32³ (228 superpatches scored)."
    )
    assert told in table.notes


def test_the_papers_strategies_stand_beside_variants_of_the_masking_alone(report):
    measured = _measured(report)
    assert _published(measured) == pytest.approx(
        {"as configured": np.nan, "plane alone": 27.75, "axis alone": 24.87, "no noise": np.nan, "superpatch 32³": np.nan},
        nan_ok=True,
    )
    row = next(r for r in _rows(report, "ablations") if r["variant"] == "plane alone")
    assert float(row["psnr_minus_published"]) == pytest.approx(float(row["psnr_masked"]) - 27.75, abs=1e-8)
    assert float(row["ssim_minus_published"]) == pytest.approx(float(row["ssim_whole"]) - 0.529, abs=1e-8)


@pytest.mark.parametrize(
    "settings",
    [{"plane_mask_ratio": 0.5}, {"axis_mask_ratio": 0.5}, {"plane_masking": "uniform"}, {"noise": [0.0]}],
    ids=["another total", "axis, too", "any tokens", "noise, too"],
)
def test_a_strategy_that_is_not_the_papers_does_not_take_its_figures(report, settings):
    measured = _with_identity(_measured(report), "plane alone", **settings)
    published = _published(measured)
    assert np.isnan(published["plane alone"])
    assert published["plane-wise"] == 27.75
    table = ablations_table(measured)
    assert table.rows[-1][1:5] == ["plane-wise", "–", "–", "not run"]


def test_a_share_hidden_in_two_ways_is_no_strategy_of_the_paper(report):
    measured = _with_identity(_measured(report), "as configured", plane_mask_ratio=0.5, axis_mask_ratio=0.5)
    assert np.isnan(_published(measured)["as configured"])


def test_steps_and_seeds_stand_in_the_caption_with_those_that_differ(report):
    measured = _measured(report)
    assert "Trained for 20 steps of 4 superpatches, seed 0 (seed spread not measured)." in ablations_table(measured).caption
    run = measured.labels("ablations")["superpatch 32³"][0]["run"]
    identities = dict(measured.identities)
    identities[run] = {**identities[run], "pretraining": {"steps": 20, "batch_size": 1}}
    caption = ablations_table(replace(measured, identities=identities)).caption
    assert "superpatches, seed 0 (seed spread not measured); superpatch 32³ for 20 steps of 1 superpatches" in caption
    assert "Trained for 20 steps of 4 superpatches, seed 0" in sweep_table(measured).caption


def test_lpips_stands_beside_the_papers_once_it_is_measured(report):
    measured = _measured(report)
    table = ablations_table(measured)
    place = table.columns.index("LPIPS pasted")
    assert {line[place] for line in table.rows if line[4] != "not run"} == {"not measured"}
    run = measured.labels("ablations")["plane alone"][0]["run"]
    frame = measured.reconstructions[run]
    more = frame[(frame["metric"] == "ssim") & (frame["region"] == "whole")].assign(metric="lpips", value=0.25)
    spec = measured.spec | {"lpips": {"network": "alex", "sha256": "7be5be79"}}
    reconstructions = {**measured.reconstructions, run: pd.concat([frame, more])}
    table = ablations_table(replace(measured, spec=spec, reconstructions=reconstructions))
    assert [line[place] for line in table.rows][:3] == ["not measured", "0.250", "not measured"]
    assert table.rows[1][-2].endswith(" / 0.164") and table.rows[1][-1].endswith(" / +0.086")
    assert table.data["lpips_minus_published"].dropna().tolist() == pytest.approx([0.25 - 0.164])


def test_an_experiment_without_either_says_so(report):
    methods = [entry for entry in report.spec["runs"] if entry["part"] == "methods"]
    config = report.spec["config"] | {"sweep": None, "ablations": None}
    measured = _measured(report, runs=methods, config=config)
    for table, sentence in (
        (ablations_table(measured), "This experiment has no ablations."),
        (sweep_table(measured), "This experiment has no sweep."),
    ):
        assert table.caption == sentence
        assert list(table.rows) == [] and table.data.empty
        assert table.csv().count("\n") == 1
        assert sentence in table.markdown() and sentence in table.latex() and sentence in table.html()


# -------------------------------------------------------------------------------------------------------------- sweep


def _cell(table, embed_dim, mask_ratio):
    return table.data[(table.data["embed_dim"] == embed_dim) & (table.data["mask_ratio"] == mask_ratio)].iloc[0]


def _told(table, start):
    return next(note for note in table.notes if note.startswith(start))


def test_figures_of_a_cell(report):
    measured = _measured(report)
    row = _cell(sweep_table(measured), 96, 0.5)
    entries = measured.labels("sweep")["E 96, r 0.5"]
    estimate, f1 = (
        summarise(measured.scores(entries), "linear", 1.0, metric, resamples=report.spec["bootstrap"])
        for metric in ("auroc", "f1")
    )
    assert (row["auroc"], row["auroc_low"], row["f1"]) == pytest.approx((estimate.point, estimate.low, f1.point))
    own = measured.rows[measured.rows["run"] == entries[0]["run"]]
    assert row["validation_auroc"] == pytest.approx(own[own["metric"] == "validation_auroc"]["value"].mean())
    assert row["parameters"] == 1.4e6
    assert [_cell(sweep_table(measured), 48, r)["effective_mask_ratio"] for r in (0.5, 0.75)] == [0.75, 0.9375]


def test_inner_validation_chooses_whatever_the_test_says(report):
    measured = _measured(report)
    rows = measured.rows.copy()
    worst = measured.labels("sweep")["E 48, r 0.5"][0]["run"]
    rows.loc[(rows["run"] == worst) & (rows["metric"] == "validation_auroc"), "value"] = 0.99
    table = sweep_table(replace(measured, rows=rows))
    assert list(table.data["chosen_by_validation"][:4]) == [True, False, False, False]
    assert list(table.data["best_on_test"][:4]) == [False, False, False, True]
    assert [row[-1] for row in table.rows[:4]] == ["validation", "", "", "test (optimistic)"]
    assert "96 / 0.75" in _told(table, "Best on the test patients") and "optimistic" in _told(table, "Best on the test patients")


def test_validation_at_fewer_labels_chooses_nothing(report):
    """A run that the methods ask for, too, has been validated at every share of labels."""
    measured = _measured(report)
    run = measured.labels("sweep")["E 48, r 0.5"][0]["run"]
    mine = (measured.rows["run"] == run) & (measured.rows["metric"] == "validation_auroc")
    fewer = measured.rows[mine].assign(label_fraction=0.25, value=1.0)
    table = sweep_table(replace(measured, rows=pd.concat([measured.rows, fewer])))
    assert list(table.data["chosen_by_validation"][:4]) == [False, False, False, True]


def test_nested_selection_by_hand(report):
    """In each fold the best by that fold's validation, and its test score there."""
    measured = _measured(report)
    runs = {label: entries[0]["run"] for label, entries in measured.labels("sweep").items()}
    scored, chosen = [], []
    for fold in range(FOLDS):
        here = measured.rows[(measured.rows["fold"] == fold) & (measured.rows["protocol"] == "linear")]
        validation = {
            label: here[(here["run"] == run) & (here["metric"] == "validation_auroc")]["value"].mean()
            for label, run in runs.items()
        }
        best = max(validation, key=validation.get)
        chosen.append(best)
        test = here[(here["run"] == runs[best]) & (here["metric"] == "auroc") & (here["easy_negatives"] == "out")]
        assert len(test) == 3  # organs
        scored += test["value"].tolist()
    assert len(set(chosen)) > 1
    note = _told(sweep_table(measured), "What choosing is worth")
    assert f"reaches AUROC {np.mean(scored):.3f}" in note
    names = [label.removeprefix("E ").replace(", r", " /") for label in chosen]
    assert ", ".join(f"fold {fold}: {name}" for fold, name in enumerate(names)) in note


def test_without_validation_nothing_is_chosen(report):
    measured = _measured(report)
    table = sweep_table(replace(measured, rows=measured.rows[measured.rows["metric"] != "validation_auroc"]))
    assert not table.data["chosen_by_validation"][:4].any()
    assert not any("nested" in note for note in table.notes)
    assert any("it chooses no cell" in note for note in table.notes)


def test_published_cells_stand_beside_the_same_width_and_ratio(report):
    runs = [dict(entry) for entry in report.spec["runs"]]
    for entry in runs:
        if entry.get("embed_dim") == 96:
            entry["embed_dim"] = 768
    table = sweep_table(_measured(report, runs=runs))
    row = _cell(table, 768, 0.75)
    assert (row["status"], row["published_auroc"], row["published_f1"]) == ("measured", 0.9643, 0.781)
    assert row["auroc_minus_published"] == pytest.approx(row["auroc"] - 0.9643)
    assert pd.isna(_cell(table, 48, 0.75)["published_auroc"])
    left = table.data[table.data["status"] == "not run"]
    assert list(zip(left["embed_dim"], left["mask_ratio"], strict=True)) == [(384, 0.5), (576, 0.5)]
    assert any("text calls 768 / 0.75 best" in note and "best is 384 / 0.5" in note for note in table.notes)


TRIALS = pd.DataFrame(
    {
        "number": [2, 0, 1, 3],
        "state": ["pruned", "complete", "complete", "failed"],
        "embed_dim": [96, 48, 96, 48],
        "mask_ratio": [0.5, 0.5, 0.7500000000000001, 0.25],
        "run": ["c", "a", "b", "d"],
        "validation_auroc": [0.99, 0.8, 0.9, None],
        "steps": [10, 40, 40, 0],
        "effective_mask_ratio": [0.72, 0.71, 0.9, None],
    }
)


def _searched(report, labels=()):
    runs = [e for e in report.spec["runs"] if e["part"] != "sweep" or e["label"] in labels]
    config = report.spec["config"] | {"sweep": report.spec["config"]["sweep"] | {"search": {"trials": 4}}}
    return _measured(report, runs=runs, config=config)


def test_an_adaptive_search_is_printed_by_its_trials(report):
    table = sweep_table(replace(_searched(report, ["E 96, r 0.75"]), trials=TRIALS))
    assert list(table.data["trial"][:4]) == [0, 1, 2, 3]
    assert [row[:3] for row in table.rows[:4]] == [
        ["0", "complete", "40"], ["1", "complete", "40"], ["2", "pruned", "10"], ["3", "failed", "0"],
    ]  # fmt: skip
    assert list(table.data["chosen_by_validation"][:4]) == [False, True, False, False]  # a pruned score is another one's
    best, other = table.data.iloc[1], table.data.iloc[0]
    assert best["auroc"] == pytest.approx(_cell(sweep_table(_measured(report)), 96, 0.75)["auroc"])
    assert pd.isna(other["auroc"])
    assert list(table.data["effective_mask_ratio"][:3]) == [0.71, 0.9375, 0.72]  # of the best as it was measured
    assert [row[5] for row in table.rows[:4]] == ["71.0 %", "93.8 %", "72.0 %", "–"]
    assert (best["mask_ratio"], best["validation_auroc"]) == (0.75, 0.9)
    assert not table.data["best_on_test"][:4].any()
    assert "An adaptive search of 40 steps: 2 trials complete, 1 trial pruned, 1 trial failed." in table.caption
    assert not any("nested" in note for note in table.notes)


def test_a_search_whose_best_run_was_not_evaluated_or_that_told_nothing(report):
    table = sweep_table(replace(_searched(report), trials=TRIALS))
    assert table.data["auroc"].isna().all()
    assert list(table.data["chosen_by_validation"][:4]) == [False, True, False, False]
    assert sweep_table(_searched(report)).caption == "No trial of the adaptive search is known."


def test_trials_are_read_where_they_were_collected(report, tmp_path):
    for file in report.collected.iterdir():
        (tmp_path / file.name).symlink_to(file)
    TRIALS.to_parquet(tmp_path / "trials.parquet")
    assert read_measured(report.spec, tmp_path).trials["run"].tolist() == ["c", "a", "b", "d"]
    assert read_measured(report.spec, report.collected).trials is None
