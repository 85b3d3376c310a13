"""The verdict beside every result."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
from report_experiment import make_experiment, write_audit

from nemesis.data.cards import cards
from nemesis.report.collect import collect
from nemesis.report.leakage import HOLDS, in_words, of_weights, verdicts
from nemesis.report.published import plain
from nemesis.report.tables import tables
from nemesis.report.tables.measured import read_measured

SHARED = {"pools": "pretraining, evaluation", "first": "other/9", "second": "a/s03", "why": ["signature"], "score": 300.0}
AMONG = SHARED | {"pools": "evaluation, evaluation", "second": "b/s04"}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """An experiment that is judged on two data sets, and its folder."""
    root = tmp_path_factory.mktemp("leakage")
    return make_experiment(root, ("a", "b")), root


def measured(experiment, pairs):
    spec, root = experiment
    write_audit(root / "audit.json", pairs)
    collect(spec, root / "collected")
    return read_measured(spec, root / "collected")


def column(table, name):
    return [row[list(table.columns).index(name)] for row in table.rows]


def by_method(table):
    pairs = zip(column(table, "method"), column(table, "leakage"), strict=True)
    return {method: told for method, told in pairs if told != "–"}  # of what was not run nothing is said


def test_clean_pools_are_clean_in_every_table_of_results(experiment):
    found = tables(measured(experiment, []))
    assert [table.name for table in found if "leakage" not in table.columns] == ["data", "cost"]
    for table in found[1:-1]:
        told = {text for text in column(table, "leakage") if text != "–"}
        assert told == {"clean"}, table.name
        assert set(table.data["leakage"].dropna()) == {"clean"}
        assert any(note.startswith("Leakage: ") for note in table.notes)


def test_a_shared_scan_stands_beside_what_was_pretrained_on_it(experiment):
    found = {table.name: table for table in tables(measured(experiment, [SHARED, AMONG]))}
    main = by_method(found["main"])
    assert main["NEMESIS"] == main["Auto_encoder & co"] == "transductive: a; clean: b"
    assert main["Random ViT"] == "clean"  # it saw nothing
    by_dataset = found["maesil_datasets"].data.set_index(["method", "dataset"])["leakage"]
    assert (by_dataset["NEMESIS", "a"], by_dataset["NEMESIS", "b"]) == ("transductive", "clean")
    assert set(found["sweep"].data["leakage"].dropna()) == {"transductive: a; clean: b"}


def test_published_weights_are_judged_by_the_data_they_name(experiment):
    spec, root = experiment
    sections = [{"reader": "files", "name": "a"}, {"reader": "card", "name": "b", "card": "BTCV"}]
    runs = [entry | {"trained_on": ["AbdomenAtlas"] if entry["method"] == "ae" else None} for entry in spec["runs"]]
    here = measured((spec, root), [])
    here = replace(here, spec=spec | {"runs": runs, "config": spec["config"] | {"datasets": sections}})
    told = by_method(tables(here)[1])
    assert told["Auto_encoder & co"] == "overlap: b; unknown: a"  # AbdomenAtlas holds BTCV; what "a" is nobody knows
    assert told["NEMESIS"] == "clean"


@pytest.mark.parametrize(
    ("trained_on", "evaluated_on", "told"),
    [
        (["BTCV"], "btcv", "overlap"),
        (["AbdomenAtlas"], "BTCV", "overlap"),
        (["AbdomenAtlas"], "Synapse", "overlap"),  # through BTCV
        (["FLARE23"], "Pancreas-CT", "overlap"),  # through AbdomenCT-1K
        (["FLARE23"], "TotalSegmentator", "overlap"),
        (["LUNA16"], "LIDC_IDRI", "overlap"),
        (["TCIA-COVID19"], "flare23", "overlap"),  # a part of what it is judged on
        (["CT-ORG"], "FLARE23", "overlap"),  # both hold LiTS
        (["LUNA16", "TotalSegmentator"], "BTCV", "clean"),
        (["LUNA16", "a hospital's own"], "BTCV", "unknown"),
        (["LUNA16"], "mine", "unknown"),
        ([], "BTCV", "unknown"),
    ],
)
def test_what_data_sets_hold(trained_on, evaluated_on, told):
    assert of_weights(trained_on, [evaluated_on]) == told


def test_what_a_data_set_holds_is_known_itself():
    assert {other for others in HOLDS.values() for other in others} <= set(HOLDS)


def test_every_card_is_a_data_set_of_which_is_known_who_holds_it():
    assert {plain(name) for name in cards()} <= {plain(name) for name in HOLDS}


def test_nobody_else_has_phantoms():
    spec = {"config": {"datasets": [{"name": "phantom", "reader": "phantom"}]}, "datasets": ["phantom"]}
    audit = pd.DataFrame({"pools": [], "second": []})
    assert verdicts(spec, audit, {"trained_on": [], "learns_labels": False}, trains=False) == {"phantom": "clean"}


def test_the_worst_comes_first():
    assert in_words({"a": "clean", "b": "unknown", "c": "overlap", "d": "clean"}) == "overlap: c; unknown: b; clean: a, d"
    assert in_words({"a": "clean", "b": "clean"}) == "clean"


def test_an_audit_that_is_missing_is_named(experiment):
    from nemesis.errors import NemesisError

    spec, root = experiment
    with pytest.raises(NemesisError, match=r"gone\.json: does not exist"):
        collect(spec | {"audit": str(root / "gone.json")}, root / "nowhere")
