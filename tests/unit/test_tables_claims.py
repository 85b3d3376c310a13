"""The verdict of a claim follows the rows: it turns when they turn, and says what is missing when they are not there."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
from report_experiment import FOLDS, PATIENTS

from nemesis.evaluation.statistics import MIN_PATIENTS_FOR_INTERVAL, Scores
from nemesis.report.claims import Claim
from nemesis.report.tables import read_measured
from nemesis.report.tables.claims import claims_table
from nemesis.report.verdicts import CONTRADICTED, SUPPORTED, UNDECIDABLE

NEMESIS, RANDOM = {"method": "nemesis"}, {"method": "random_vit"}
BOTH = {"variant": {}}


@pytest.fixture
def measured(report):
    return read_measured(report.spec, report.collected)


def claim(left, right=None, metric="auroc", **changes):
    """A claim of one comparison: left above right."""
    comparisons = [{"left": left, "right": right}]
    said = {"id": "a", "paper": "P", "place": "Table I", "statement": "s", "kind": "measured", "comparisons": comparisons}
    return Claim(**said | {"metric": metric} | changes)


def judged(measured, *claims):
    """The verdict and the lines of the CSV of a claim."""
    table = claims_table(measured, claims)
    return table.rows[0][2], table.data


def swapped(measured, first, second):
    """What was predicted by the runs of a method is said to be the other's, and the other way round."""
    runs = [measured.labels("methods")[label][0]["run"] for label in (first, second)]
    own = [measured.predictions[run] for run in runs]
    others = {e["run"]: own[1] for e in measured.labels("methods")[first]}
    return replace(measured, predictions=dict(measured.predictions) | others | {runs[1]: own[0]})


# ---------------------------------------------------------------------------------------------------- organ presence


def test_a_verdict_turns_with_the_rows(measured):
    better = claim(NEMESIS, RANDOM)
    found, data = judged(measured, better)
    assert found == SUPPORTED
    assert data["difference_low"][0] > 0 and data["n_patients"][0] == PATIENTS
    turned, data = judged(swapped(measured, "NEMESIS", "Random ViT"), better)
    assert turned == CONTRADICTED and data["difference_high"][0] < 0
    assert judged(swapped(measured, "NEMESIS", "Random ViT"), claim(NEMESIS, RANDOM, relation="below"))[0] == SUPPORTED


def test_what_chance_could_have_made_is_not_decided(measured):
    """A network like NEMESIS's but for the noise."""
    (alike,) = (measured.predictions[e["run"]] for e in measured.labels("methods")["NEMESIS"][1:])
    predictions = {entry["run"]: alike for entry in measured.labels("methods")["Random ViT"]}
    found, data = judged(replace(measured, predictions=dict(measured.predictions) | predictions), claim(NEMESIS, RANDOM))
    assert found == UNDECIDABLE
    assert data["difference_low"][0] < 0 < data["difference_high"][0]


def test_sides_of_two_protocols_meet_in_the_folds_of_both(measured):
    """Fine-tuned networks were tested on three folds of five: frozen ones are compared there alone."""
    frozen, tuned = NEMESIS | {"protocol": "linear"}, RANDOM | {"protocol": "finetune"}
    _, data = judged(measured, claim(frozen, tuned))
    assert data["n_patients"][0] == sum(n % FOLDS < 3 for n in range(PATIENTS))
    changed = {}
    for run, scores in measured.predictions.items():  # what frozen networks say of other folds does not matter
        frame = scores.predictions
        elsewhere = (frame["protocol"] == "linear") & (frame["fold"] >= 3)
        changed[run] = Scores(frame.assign(score=frame["score"].where(~elsewhere, 0.5)))
    _, other = judged(replace(measured, predictions=changed), claim(frozen, tuned))
    assert other["difference"][0] == data["difference"][0]


def test_fewer_labels_are_compared_with_all(measured):
    few = NEMESIS | {"fraction": 0.25}
    assert judged(measured, claim(few, NEMESIS))[0] == CONTRADICTED
    assert judged(measured, claim(few, NEMESIS, margin=-0.5))[0] == SUPPORTED  # loses less than half


def test_what_other_training_patients_would_change_is_in_the_interval(measured):
    """The draws of the lesser share of labels tell it, also beside all labels, of which there is one draw."""
    few = claim(NEMESIS | {"fraction": 0.25}, NEMESIS)
    widths = []
    for luck in (0.0, 0.3):
        changed = {}
        for run, scores in measured.predictions.items():
            frame = scores.predictions
            unlucky = (frame["label_fraction"] == 0.25) & (frame["draw"] == 1) & frame["truth"]
            changed[run] = Scores(frame.assign(score=frame["score"] - luck * unlucky))
        _, data = judged(replace(measured, predictions=changed), few)
        widths.append(data["difference_high"][0] - data["difference_low"][0])
    assert widths[1] > 3 * widths[0]


def test_a_side_alone_is_compared_with_the_margin(measured):
    assert judged(measured, claim(NEMESIS, relation="above", margin=0.6))[0] == SUPPORTED
    assert judged(measured, claim(NEMESIS, relation="below", margin=0.6))[0] == CONTRADICTED


def test_too_few_patients_decide_nothing(measured):
    few = [f"phantom/s{n:02}" for n in range(4)]
    predictions = {r: Scores(s.predictions[s.predictions["patient"].isin(few)]) for r, s in measured.predictions.items()}
    found, data = judged(replace(measured, predictions=predictions), claim(NEMESIS, RANDOM))
    assert found == UNDECIDABLE
    assert f"4 patients, at least {MIN_PATIENTS_FOR_INTERVAL} are needed" in data["missing"][0]
    assert data["difference"][0] > 0  # the figure itself is told


@pytest.mark.parametrize(
    ("left", "metric", "key"),
    [
        ({"method": "voco"}, "auroc", "`methods`"),
        (NEMESIS | {"fraction": 0.1}, "auroc", "`probe.label_fractions`"),
        (NEMESIS | {"protocol": "finetune", "fraction": 0.1}, "auroc", "`finetune.tasks`, `finetune.label_fractions`"),
        (RANDOM | {"protocol": "finetune", "arm": "scratch"}, "auroc", "`finetune.controls`"),
        (NEMESIS, "dice", "`finetune.tasks`"),
        (NEMESIS, "lpips", "no LPIPS of NEMESIS (`reconstruction`)"),
        (NEMESIS | {"dataset": "BTCV"}, "psnr", "no scans of BTCV (`pools.evaluation`)"),
        ({"variant": {"settings": {"tokens": 0}}}, "auroc", "no ablation tokens 0 (`ablations.variants`)"),
        ({"cell": {"embed_dim": "widest", "mask_ratio": 0.25}}, "auroc", "no cell widest, mask ratio 0.25 (`sweep`)"),
        (RANDOM, "steps", "`finetune.checks`"),
    ],
)
def test_what_is_missing_is_named_with_its_key(left, metric, key, measured):
    found, data = judged(measured, claim(left, {"method": "ae"}, metric))
    assert found == UNDECIDABLE and key in data["missing"][0]
    assert pd.isna(data["difference"][0])


def test_all_comparisons_have_to_hold(measured):
    pairs = ((NEMESIS, RANDOM), (RANDOM, NEMESIS), (NEMESIS, {"method": "voco"}))
    holds, fails, lacks = ({"left": left, "right": right} for left, right in pairs)
    expected = {SUPPORTED: [holds, holds], CONTRADICTED: [holds, lacks, fails], UNDECIDABLE: [holds, lacks]}
    for told, comparisons in expected.items():
        assert judged(measured, claim(NEMESIS, comparisons=comparisons))[0] == told


def test_superpatches_of_another_size_are_not_compared_by_what_they_hold(measured):
    entry = measured.labels("methods")["Random ViT"][0]
    identities = dict(measured.identities) | {entry["run"]: dict(measured.identities[entry["run"]], superpatch=32)}
    found, data = judged(replace(measured, identities=identities), claim(NEMESIS, RANDOM))
    assert found == UNDECIDABLE and "different sizes" in data["missing"][0]
    about = judged(measured, claim(NEMESIS, RANDOM, superpatch=128))
    assert about[0] == UNDECIDABLE and "superpatches of 128³, these are of 16³ (`superpatch`)" in about[1]["missing"][0]


# --------------------------------------------------------------------------------------------------- ablations, sweep


def test_an_ablation_is_known_by_its_settings_not_by_its_name(measured):
    axis = {"variant": {"settings": {"plane_mask_ratio": 0.0, "axis_mask_ratio": 0.75}}}
    found, data = judged(measured, claim(BOTH, axis))
    assert found == SUPPORTED and data["right"][0] == "axis alone"
    spec = measured.spec | {"runs": [e | {"label": "x"} if e["label"] == "axis alone" else e for e in measured.spec["runs"]]}
    assert judged(replace(measured, spec=spec), claim(BOTH, axis))[1]["right"][0] == "x"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"axis_mask_ratio": 0.5}, "hides 0.5 of a superpatch, as configured 0.75"),
        ({"noise": [0.0]}, "no ablation plane_mask_ratio 0.0"),  # two things differ: it is no test of one
    ],
)
def test_an_ablation_changes_one_thing_and_hides_as_much(changes, says, measured):
    wanted = {"plane_mask_ratio": 0.0, "axis_mask_ratio": changes.get("axis_mask_ratio", 0.75)}
    run = measured.labels("ablations")["axis alone"][0]["run"]
    identity = dict(measured.identities[run])
    identity["settings"] = identity["settings"] | changes
    changed = replace(measured, identities=dict(measured.identities) | {run: identity})
    found, data = judged(changed, claim(BOTH, {"variant": {"settings": wanted}}))
    assert found == UNDECIDABLE and says in data["missing"][0]


@pytest.mark.parametrize(("configured", "variant"), [({"patch": None, "grid": 4}, {"patch": 2}), ({"patch": 4}, {"grid": 8})])
def test_half_a_patch_is_half_of_what_is_configured(configured, variant, measured):
    first, other = (measured.labels("ablations")[label][0]["run"] for label in ("as configured", "no noise"))
    settings = measured.identities[first]["settings"] | configured
    plans = {first: settings, other: settings | {"patch": None} | variant}
    changed = {run: dict(measured.identities[run], settings=settings) for run, settings in plans.items()}
    _, data = judged(replace(measured, identities=dict(measured.identities) | changed), claim(BOTH, {"variant": {"patch": 0.5}}))
    assert data["right"][0] == "no noise" and data["n_patients"][0] == PATIENTS


@pytest.mark.parametrize(("patch", "told"), [(4, "superpatch 32³"), (8, None)])
def test_a_superpatch_of_double_the_edge_keeps_its_patch(patch, told, measured):
    """However many of them a step takes."""
    first, other = (measured.labels("ablations")[label][0]["run"] for label in ("as configured", "superpatch 32³"))
    plans = {run: dict(measured.identities[run]) for run in (first, other)}
    plans[first]["settings"] = plans[first]["settings"] | {"patch": None, "grid": 4}
    plans[other]["settings"] = plans[other]["settings"] | {"patch": patch, "grid": 4}
    plans[other]["pretraining"] = {"steps": 10, "batch_size": 1}
    changed = replace(measured, identities=dict(measured.identities) | plans)
    _, data = judged(changed, claim(BOTH, {"variant": {"superpatch": 2}}, "psnr_masked"))
    assert (data["right"][0] if pd.notna(data["difference"][0]) else None) == told


def test_a_cell_is_compared_with_every_other(measured):
    best, worst = ({"cell": {"embed_dim": width, "mask_ratio": r}} for width, r in (("widest", 0.75), ("narrowest", 0.5)))
    found, data = judged(measured, claim(worst, {"cell": {"others": True}}))
    assert found == CONTRADICTED
    assert list(data["right"]) == ["48 / 0.75", "96 / 0.5", "96 / 0.75"]
    assert judged(measured, claim(best, {"cell": {"others": True}}, "f1"))[0] == SUPPORTED
    search = measured.spec | {"config": measured.spec["config"] | {"sweep": {"search": {}}}}
    assert "best trial alone" in judged(replace(measured, spec=search), claim(best, worst))[1]["missing"][0]


def test_a_sweep_of_one_width_says_nothing_of_widths(measured):
    """The narrowest and the widest are then one cell, which is no further from itself than anybody claims."""
    runs = [e for e in measured.spec["runs"] if e["part"] != "sweep" or e["embed_dim"] == 96]
    narrow, wide = ({"cell": {"embed_dim": width, "mask_ratio": 0.5}} for width in ("narrowest", "widest"))
    alone = replace(measured, spec=measured.spec | {"runs": runs})
    found, data = judged(alone, claim(narrow, wide, relation="within", margin=0.01))
    assert found == UNDECIDABLE
    assert data["missing"][0] == "the sweep has one width alone (`sweep.embed_dims`)"
