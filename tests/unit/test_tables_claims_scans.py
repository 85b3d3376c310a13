"""Claims about segmentation, convergence, reconstruction and cost; what the table and the page say of all of them."""

from __future__ import annotations

import csv
import re
from dataclasses import replace

import pandas as pd
import pytest
from report_experiment import PATIENTS, make_experiment
from test_tables_claims import claim, judged

from nemesis.evaluation.rows import ROW_COLUMNS
from nemesis.report.claims import load_claims
from nemesis.report.collect import collect
from nemesis.report.tables import read_measured
from nemesis.report.tables.claims import claims_table
from nemesis.report.verdicts import CONTRADICTED, INCONSISTENT, SUPPORTED, UNDECIDABLE

NEMESIS, AE = {"method": "nemesis"}, {"method": "ae"}
SCRATCH = AE | {"arm": "scratch"}


@pytest.fixture
def measured(report):
    return read_measured(report.spec, report.collected)


@pytest.fixture(scope="module")
def two_datasets(tmp_path_factory):
    """The experiment on BTCV and LIDC-IDRI, as its folders call them."""
    root = tmp_path_factory.mktemp("two")
    spec = make_experiment(root, ("btcv", "lidc_idri"))
    collect(spec, root / "collected")
    return read_measured(spec, root / "collected")


def shifted(measured, label, by):
    """Every figure of the reconstructions of a method, plus so much; ``by`` may depend on the line."""
    changed = dict(measured.reconstructions)
    for entry in measured.labels("methods")[label]:
        frame = changed[entry["run"]]
        changed[entry["run"]] = frame.assign(value=frame["value"] + by(frame))
    return replace(measured, reconstructions=changed)


# --------------------------------------------------------------------------------------------------------------- Dice


def test_segmentation_is_compared_between_arms(measured):
    assert judged(measured, claim(AE, SCRATCH, "dice"))[0] == SUPPORTED
    assert judged(measured, claim(SCRATCH, AE, "dice"))[0] == CONTRADICTED
    by = judged(measured, claim(AE, SCRATCH, "dice"))[1]["difference"][0]
    assert judged(measured, claim(AE, SCRATCH, "dice", margin=by))[0] == UNDECIDABLE
    assert judged(measured, claim(AE, SCRATCH, "dice", margin=by + 0.1))[0] == CONTRADICTED
    missing = judged(measured, claim(AE | {"fraction": 0.25}, SCRATCH, "dice"))[1]["missing"][0]
    assert "25 % of the labels (`finetune.tasks`, `finetune.label_fractions`)" in missing


# -------------------------------------------------------------------------------------------------------- convergence


def validated(measured, curves):
    """With the validation of trainings: arm's protocol → a curve (step → Dice) for each fold, at the rate that was taken;
    at the other rate every first look was higher, and what came after it lower."""
    run = measured.labels("methods")["Auto_encoder & co"][0]["run"]
    rows = []
    for protocol, folds in curves.items():
        for fold, curve in enumerate(folds):
            place = {"run": run, "protocol": protocol, "label_fraction": 1.0, "draw": 0, "fold": fold}
            rows.append(place | {"metric": "learning_rate", "value": 1e-3})
            for step, value in curve.items():
                told = place | {"metric": "validation", "step": step}
                rows.append(told | {"learning_rate": 1e-3, "value": value})
                rows.append(told | {"learning_rate": 1e-2, "value": 0.55 if step == min(curve) else 0.0})
    others = measured.rows[~measured.rows["metric"].isin(("validation", "learning_rate"))]
    return replace(measured, rows=pd.concat([others, pd.DataFrame(rows, columns=ROW_COLUMNS)], ignore_index=True))


FAST = [{20: 0.3 + fold / 50 - 0.1 * (fold == 0), 40: 0.5, 60: 0.6} for fold in range(5)]  # the first by one look later
SLOW = [{20: 0.1, 40: 0.2, 60: 0.3 + fold / 50} for fold in range(5)]


def test_fewer_steps_to_the_same_dice(measured):
    faster = claim(AE, SCRATCH, "steps", relation="below")
    found, data = judged(validated(measured, {"segment": FAST, "segment_scratch": SLOW}), faster)
    assert found == SUPPORTED and data["difference"][0] == pytest.approx(-36)
    assert judged(validated(measured, {"segment": SLOW, "segment_scratch": FAST}), faster)[0] == CONTRADICTED
    mixed = {"segment": FAST[:2] + SLOW[:3], "segment_scratch": SLOW[:2] + FAST[:3]}
    assert judged(validated(measured, mixed), faster)[0] == UNDECIDABLE


def test_looks_too_far_apart_to_tell_trainings_from_one_another_decide_nothing(measured):
    """An interval of no width would be what the spacing of the looks made of it."""
    alike = validated(measured, {"segment": FAST[1:] + FAST[4:], "segment_scratch": SLOW[1:] + SLOW[4:]})
    found, data = judged(alike, claim(AE, SCRATCH, "steps", relation="below"))
    assert (found, data["difference"][0]) == (UNDECIDABLE, -40)
    assert data["missing"][0] == "no interval: all 5 trainings differ by as many steps, for want of looks between"


def test_convergence_without_curves_or_with_few_is_not_decided(measured):
    faster = claim(AE, SCRATCH, "steps", relation="below")
    few = validated(measured, {"segment": FAST[:3], "segment_scratch": SLOW[:3]})
    found, data = judged(few, faster)
    assert found == UNDECIDABLE and "3 trainings of both sides, at least 5 are needed" in data["missing"][0]
    ends = [{60: 0.5}] * 5  # the step that was chosen is no curve
    found, data = judged(validated(measured, {"segment": ends, "segment_scratch": SLOW}), faster)
    assert found == UNDECIDABLE and "no validation at several steps of the segmentation by Auto_encoder" in data["missing"][0]


# ----------------------------------------------------------------------------------------------------- reconstruction


def test_reconstructions_turn_with_their_figures(measured):
    better = claim(NEMESIS, AE, "psnr")
    assert judged(measured, better)[0] == SUPPORTED
    found, data = judged(shifted(measured, "Auto_encoder & co", lambda frame: 9.0), better)
    assert found == CONTRADICTED and data["n_patients"][0] == PATIENTS
    assert data["n_superpatches"][0] > PATIENTS and data["n_cells"][0] == 0  # a mean over superpatches, of no probe
    far = shifted(measured, "Auto_encoder & co", lambda frame: 9.0 * ((frame["superpatch"] // 12) % 2 * 2 - 1))
    assert judged(far, better)[0] == UNDECIDABLE


def test_two_datasets_are_two_samples(two_datasets):
    """Other patients, of whom none is on both sides."""
    btcv, lidc = (NEMESIS | {"dataset": name} for name in ("BTCV", "LIDC-IDRI"))
    apart = shifted(two_datasets, "NEMESIS", lambda frame: 8.0 * (frame["dataset"] == "btcv"))
    found, data = judged(apart, claim(btcv, lidc, "psnr"))
    assert found == SUPPORTED and data["n_patients"][0] == PATIENTS
    assert judged(apart, claim(lidc, btcv, "psnr"))[0] == CONTRADICTED
    found, data = judged(two_datasets, claim(btcv, lidc, "psnr"))
    assert found == UNDECIDABLE
    one = [judged(two_datasets, claim(side, None, "psnr"))[1] for side in (btcv, lidc)]
    width = sum((each["difference_high"][0] - each["difference_low"][0]) ** 2 for each in one) ** 0.5
    assert data["difference_high"][0] - data["difference_low"][0] == pytest.approx(width, rel=0.2)


def test_a_published_figure_is_met_within_its_tolerance(two_datasets):
    published = {"of": [["maesil", "table3_psnr_by_dataset", "BTCV"]]}
    met = claim(NEMESIS | {"dataset": "BTCV"}, published, "psnr", relation="within", margin=3.0)
    _, data = judged(two_datasets, met)
    assert data["verdict"][0] == CONTRADICTED
    there = shifted(two_datasets, "NEMESIS", lambda frame: -data["difference"][0])
    assert judged(there, met)[0] == SUPPORTED


# --------------------------------------------------------------------------------------------------------------- cost


def test_what_is_counted_needs_no_interval(measured):
    cheaper = claim(AE, NEMESIS, "volume_gmac", kind="counted", relation="below")
    assert judged(measured, cheaper)[0] == SUPPORTED
    run = measured.labels("methods")["Auto_encoder & co"][0]["run"]
    rows = measured.rows.copy()
    rows.loc[(rows["run"] == run) & (rows["metric"] == "pretext_macs"), "value"] *= 10
    assert judged(replace(measured, rows=rows), cheaper)[0] == CONTRADICTED
    missing = judged(measured, claim({"method": "random_vit"}, AE, "pretext_gmac", kind="counted"))[1]["missing"][0]
    assert missing == "the pretext of Random ViT was not counted"


@pytest.mark.parametrize(
    ("metric", "told"), [("pretext_gmac", 0.32), ("pretext_gflop", 0.64), ("volume_gmac", 0.32 * 32 * 32 * 25)]
)
def test_units_of_cost(metric, told, measured):
    assert judged(measured, claim(NEMESIS, None, metric, kind="counted"))[1]["difference"][0] == pytest.approx(told)


# --------------------------------------------------------------------------------------------------- table and page


def test_every_claim_has_its_line(report, measured):
    table = claims_table(measured)
    assert [row[0] for row in table.rows] == [claim.statement for claim in load_claims()]
    verdicts = {row["claim"]: row["verdict"] for row in csv.DictReader((report.tables / "claims.csv").open(newline=""))}
    assert list(verdicts) == [claim.id for claim in load_claims()]
    assert verdicts["frozen_above_random"] == SUPPORTED and verdicts["frozen_above_voco"] == UNDECIDABLE
    assert all(verdicts[claim.id] == INCONSISTENT for claim in load_claims() if claim.kind == "inconsistent")
    assert table.caption.startswith("Tested on phantom with superpatches of 16³. Trained for 40 steps")


def test_the_page_counts_verdicts_and_says_of_what_they_speak(report):
    page = report.page.read_text(encoding="utf-8")
    rows = list(csv.DictReader((report.tables / "claims.csv").open(newline="")))
    verdicts = {row["claim"]: row["verdict"] for row in rows}
    found = re.search(
        r"Of (\d+) statements of the papers that measuring can test, (\d+) supported, (\d+) contradicted, (\d+) not decidable "
        r"\((\d+) of them for want of a side that was not measured\)\. This speaks of phantom with superpatches of 16³ alone\. "
        r"(\d+) more are denied",
        page,
    )
    kinds = [list(verdicts.values()).count(kind) for kind in (SUPPORTED, CONTRADICTED, UNDECIDABLE, INCONSISTENT)]
    lacking = {row["claim"] for row in rows if row["verdict"] == UNDECIDABLE and not row["difference"]}
    assert [int(n) for n in found.groups()] == [sum(kinds[:3]), *kinds[:3], len(lacking), kinds[3]]
    assert "<h2>What the papers say</h2>" in page
