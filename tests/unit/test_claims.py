"""The list of claims: that it can be trusted, the rule of the verdict, and what the papers' own figures say."""

from __future__ import annotations

import copy

import pytest
from pydantic import ValidationError

from nemesis.evaluation.cost import superpatches
from nemesis.method import create, methods
from nemesis.report import claims as module
from nemesis.report import published
from nemesis.report.claims import METRICS, Claim, Figures, Side, load_claims
from nemesis.report.verdicts import (
    CONSISTENT,
    CONTRADICTED,
    INCONSISTENT,
    SUPPORTED,
    UNDECIDABLE,
    own_figures,
    together,
    value_of,
    verdict,
)

CLAIMS = {claim.id: claim for claim in load_claims()}
INSIDE = {claim.id for claim in load_claims() if claim.kind == "inconsistent"}
SIDE, FIGURES = {"method": "nemesis"}, {"of": [1.0]}
BASE = {"id": "a", "paper": "P", "place": "Table I", "statement": "s", "kind": "measured", "metric": "auroc"}


def sides(claim):
    return [side for each in claim.comparisons for side in (each.left, each.right) if isinstance(side, Side)]


# ------------------------------------------------------------------------------------------------------------ the list


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=CLAIMS)
def test_a_claim_names_what_exists(claim):
    assert claim.paper and claim.place and claim.statement and not claim.statement.endswith(".")
    assert claim.metric in METRICS or claim.kind == "inconsistent"
    for side in sides(claim):
        assert side.method is None or side.method in methods()
        if side.variant:  # settings that NEMESIS has, with values that it takes
            method = create("nemesis", side.variant.settings, 128)
            told = method.settings.model_dump(mode="json")
            assert {name: told[name] for name in side.variant.settings} == side.variant.settings
    for comparison in claim.comparisons:
        for place in comparison.published:
            assert len(published.published_figures(place)) == 1, place
        for figures in (comparison.left, comparison.right):
            if isinstance(figures, Figures):
                assert value_of(figures) >= 0


@pytest.mark.parametrize("claim", [c for c in CLAIMS.values() if any(e.published for e in c.comparisons)], ids=lambda c: c.id)
def test_the_figures_that_a_claim_was_read_from_support_it(claim):
    for comparison in claim.comparisons:
        first, *rest = [published.published_figures(place)[0] for place in comparison.published]
        difference = first - sum(rest)
        assert verdict(claim.relation, claim.margin, difference, difference) == SUPPORTED


def test_every_paper_and_every_kind_has_claims():
    papers = {claim.paper for claim in CLAIMS.values()}
    assert papers == {"NEMESIS", "MAESIL", "nnFormer MAE", "SuPreM", "VoCo"}
    assert {claim.kind for claim in CLAIMS.values()} == {"measured", "counted", "inconsistent"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"comparisons": [{"left": {}}]}, "one of method, variant, cell"),
        ({"comparisons": [{"left": SIDE | {"variant": {}}}]}, "one of method, variant, cell"),
        ({"comparisons": [{"left": FIGURES, "right": FIGURES}]}, "of an inconsistent claim"),
        ({"comparisons": [{"left": SIDE, "right": SIDE, "published": [["a"]]}]}, "figure of each side"),
        ({"comparisons": [{"left": SIDE}], "metric": None}, "says its metric"),
        ({"comparisons": [{"left": SIDE}], "relation": "within"}, "the tolerance"),
        ({"comparisons": [{"left": SIDE | {"fraction": 2}}]}, "less than or equal to 1"),
        ({"comparisons": [{"left": SIDE | {"arms": "scratch"}}]}, "Extra inputs"),
        ({"comparisons": []}, "at least 1"),
        ({"comparisons": [{"left": FIGURES}], "kind": "inconsistent", "metric": None}, "both sides"),
    ],
)
def test_what_is_no_claim_is_refused(changes, says):
    with pytest.raises(ValidationError, match=says):
        Claim(**BASE | changes)


def test_one_id_is_one_claim(monkeypatch):
    monkeypatch.setattr(module, "FILES", ("claims.yaml", "claims.yaml"))
    with pytest.raises(ValueError, match=r"frozen_above_suprem.* stands twice"):
        load_claims.__wrapped__()


@pytest.mark.parametrize("place", [["nemesis", "table9"], ["nemesis", "table2_main", {"method": "Nobody"}, "auroc"], ["nemesis"]])
def test_a_figure_that_is_not_published_is_an_error(place):
    with pytest.raises(KeyError):
        published.published_figures(place)


# ------------------------------------------------------------------------------------------------------------ the rule


@pytest.mark.parametrize(
    ("relation", "margin", "low", "high", "told"),
    [
        ("above", 0, 0.01, 0.2, SUPPORTED),
        ("above", 0, -0.01, 0.2, UNDECIDABLE),
        ("above", 0, -0.2, -0.01, CONTRADICTED),
        ("above", 0, 0.0, 0.0, CONTRADICTED),  # two alike: neither is above the other
        ("above", 0.05, 0.01, 0.04, CONTRADICTED),  # better, but not by as much as was said
        ("above", -0.06, -0.05, -0.01, SUPPORTED),  # worse, but by less than was said
        ("below", 0, -0.2, -0.01, SUPPORTED),
        ("below", 0, -0.2, 0.01, UNDECIDABLE),
        ("below", 0, 0.01, 0.2, CONTRADICTED),
        ("below", 0.6, 0.55, 0.59, SUPPORTED),
        ("within", 0.01, -0.01, 0.005, SUPPORTED),
        ("within", 0.01, -0.02, 0.005, UNDECIDABLE),
        ("within", 0.01, -0.03, -0.02, CONTRADICTED),
        ("within", 0.01, 0.02, 0.03, CONTRADICTED),
        ("above", 0, None, None, UNDECIDABLE),
        ("above", 0, float("nan"), float("nan"), UNDECIDABLE),
    ],
)
def test_the_interval_decides(relation, margin, low, high, told):
    assert verdict(relation, margin, low, high) == told


# -------------------------------------------------------------------------------------- what the papers' figures say


def test_what_the_papers_contradict_is_recomputed():
    """Each figure by hand, from the papers."""
    by_scans = (30 * 32.09 + 1018 * 22.58 + 1204 * 18.72) / (30 + 1018 + 1204)
    expected = {
        "ahead_of_all_rivals": [0.9075 - 0.9191, 0.9347 - 0.9473, 0.9570 - 0.9612, 0.9633 - 0.9720],
        "best_of_sweep": [0.9643 - 0.9660],
        "main_is_the_best": [0.9633 - 0.9643],
        "cheaper_than_full_volume": [1984 - 985.8],
        "readme_resnet": [0.9312 - 0.9720],
        "readme_random": [0.8843 - 0.5602],
        "readme_f1": [0.8791 - 0.753, 0.8602 - 0.678, 0.8441 - 0.701, 0.8279 - 0.782, 0.7915 - 0.000],
        "released_network": [16**3 - 8**3],
        "released_split": [24 - 18],
        "maesil_overall_psnr": [30.28 - by_scans],
        "maesil_ssim": [0.99 - 0.98],
        "maesil_mask": [(1 - 0.25 * 0.5) - 0.75],
    }
    found = {name: [compared.difference.point for compared in own_figures(CLAIMS[name])] for name in INSIDE}
    assert set(found) == set(expected)
    for name, differences in expected.items():
        assert found[name] == pytest.approx(differences), name
        assert together(CLAIMS[name], own_figures(CLAIMS[name])) == INCONSISTENT


def test_a_scan_is_as_many_superpatches_as_is_multiplied():
    (comparison,) = CLAIMS["cheaper_than_full_volume"].comparisons
    assert comparison.left.of[0] == superpatches(128)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("cheaper_than_full_volume", lambda p: p["nemesis"]["figure5_efficiency"][1].update(gflops=3000.0)),
        ("best_of_sweep", lambda p: p["nemesis"]["table5_hyperparameters"][3].update(auroc=0.97)),
        ("maesil_overall_psnr", lambda p: p["maesil"]["table2_reconstruction"][3].update(psnr=20.0)),
        ("readme_resnet", lambda p: p["nemesis_readme"][3].update(auroc=0.972)),
        ("maesil_mask", lambda p: p["maesil"]["text"].update(plane_mask=0.5)),
    ],
)
def test_other_figures_contradict_nothing(name, change, monkeypatch):
    changed = copy.deepcopy(published._published())
    change(changed)
    monkeypatch.setattr(published, "_published", lambda: changed)
    assert together(CLAIMS[name], own_figures(CLAIMS[name])) == CONSISTENT


def test_the_figures_behind_a_contradiction_are_told():
    (whole,) = own_figures(CLAIMS["cheaper_than_full_volume"])
    assert whole.told == "NEMESIS on a scan of 64 superpatches 1984 (64 × 31) against VAE on the whole 985.8"
    (psnr,) = own_figures(CLAIMS["maesil_overall_psnr"])
    assert "30.28 against" in psnr.told and "20.64 (mean of 32.09, 22.58, 18.72)" in psnr.told
