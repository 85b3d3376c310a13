import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemesis.config import Pools
from nemesis.data.cases import Case
from nemesis.data.pools import folds, label_subsets, read_pool, split, write_pool
from nemesis.errors import NemesisError

NAMES = st.lists(st.text("abc123", min_size=1, max_size=4), min_size=3, max_size=40, unique=True)


def case(name, kind="exhaustive", dataset="ct", patient=None):
    drawn = "" if kind == "none" else f"labels of {name}"
    return Case(dataset, name, patient or name, f"{name}.nii", None, kind, None, f"scan {name}", drawn)


def cases(n, kind="exhaustive", dataset="ct"):
    letter = {"exhaustive": "e", "partial": "q", "pseudo": "p", "none": "n"}[kind]
    return [case(f"{letter}{i}", kind, dataset) for i in range(n)]


def names(pool):
    return {c.case for c in pool}


def faults(some, **pools):
    with pytest.raises(NemesisError) as caught:
        split(some, Pools(**pools))
    return [str(fault) for fault in caught.value.faults]


@given(patients=NAMES, data=st.data(), seed=st.integers(0, 5))
def test_pools_are_disjoint_and_independent_of_order(patients, data, seed):
    some = [case(name) for name in patients]
    n = data.draw(st.integers(1, len(some) - 1))
    pools = Pools(seed=seed, evaluation=n)
    pretraining, evaluation = split(some, pools)
    assert len(evaluation) == n
    assert names(pretraining) | names(evaluation) == set(patients)
    assert not names(pretraining) & names(evaluation)
    assert split(random.Random(0).sample(some, len(some)), pools) == (pretraining, evaluation)
    if n > 1:
        fewer = split(some, Pools(seed=seed, evaluation=n - 1))[1]
        assert names(fewer) < names(evaluation)


def test_a_patient_less_moves_at_most_one_other():
    some = cases(40)
    before = names(split(some, Pools(evaluation=15))[1])
    for gone in some:
        after = names(split([c for c in some if c != gone], Pools(evaluation=15))[1])
        assert len(before - {gone.case} - after) == 0
        assert len(after - before) <= 1


def test_seeds_differ():
    some = cases(30)
    assert len({frozenset(names(split(some, Pools(seed=s, evaluation=10))[1])) for s in range(5)}) == 5


def test_only_patients_with_truth_are_drawn_for_evaluation():
    some = cases(3) + cases(2, "partial") + cases(9, "pseudo") + cases(9, "none")
    pretraining, evaluation = split(some, Pools(evaluation=5))
    assert {c.kind for c in evaluation} == {"exhaustive", "partial"}
    assert len(pretraining) == 18
    assert "there are 5 with exhaustive or partial labels" in faults(some, evaluation=6)[0]


def test_all_scans_of_a_patient_go_together():
    some = [case("a1", patient="a"), case("a2", "none", patient="a"), case("b", "none")]
    pretraining, evaluation = split(some, Pools(evaluation=1))
    assert names(evaluation) == {"a1", "a2"}
    assert names(pretraining) == {"b"}


def test_lists_and_counts():
    some = cases(6)
    pretraining, evaluation = split(some, Pools(evaluation=["ct/e4", "e1"], pretraining=["e0"]))
    assert (names(pretraining), names(evaluation)) == ({"e0"}, {"e1", "e4"})
    assert len(split(some, Pools(evaluation=["e1"], pretraining=3))[0]) == 3


def test_so_many_of_each_dataset_and_nobody_of_the_others():
    some = [*cases(6), *cases(9, "none", "big"), *cases(9, "none", "other")]
    pools = {"evaluation": {"ct": "all"}, "pretraining": {"big": 4, "other": 0}}
    pretraining, evaluation = split(some, Pools(**pools))
    assert {c.dataset for c in evaluation} == {"ct"} and len(evaluation) == 6
    assert {c.dataset for c in pretraining} == {"big"} and len(pretraining) == 4
    fewer = split(some, Pools(**{**pools, "pretraining": {"big": 3, "other": 2}}))[0]
    assert {c.case for c in fewer if c.dataset == "big"} < names(pretraining)
    assert names(pretraining) != names(split(some, Pools(**pools, seed=1))[0])


def test_all_of_a_dataset_are_those_that_the_pool_may_hold():
    some = [*cases(4), *cases(3, "none")]
    pretraining, evaluation = split(some, Pools(evaluation={"ct": "all"}, pretraining={"ct": "all"}))
    assert {c.kind for c in evaluation} == {"exhaustive"} and len(evaluation) == 4
    assert {c.kind for c in pretraining} == {"none"} and len(pretraining) == 3
    assert len(split(some, Pools(evaluation={"ct": 2}, pretraining={"ct": "all"}))[0]) == 5


def test_faults_of_counts_per_dataset_are_told_at_once():
    some = [*cases(3), *cases(2, "none", "unlabelled")]
    told = faults(some, evaluation={"ct": 4, "unlabelled": "all", "ctt": 1}, pretraining={"unlabelled": 3, "gone": 0})
    what_is_told = [
        "4 patients of 'ct', but there are 3 with exhaustive", "all patients of 'unlabelled', but there are 0 with",
        "'ctt'. Did you mean 'ct'", "3 patients of 'unlabelled', but there are 2 left",
    ]  # fmt: skip
    for what in what_is_told:
        assert sum(what in fault for fault in told) == 1, (what, told)
    assert len(told) == 4


def test_transductive_only_where_nobody_else_is_left(caplog):
    some = cases(3)
    told = Pools(evaluation=["e0", "e1", "e2"], transductive="if_needed")
    pretraining, evaluation = split(some, told)
    assert pretraining == evaluation == some and "transductive" in caplog.text
    caplog.clear()
    pretraining, evaluation = split([*some, case("more", "none")], told)
    assert names(pretraining) == {"more"} and evaluation == some and not caplog.text


def test_transductive():
    some = cases(6)
    pretraining, evaluation = split(some, Pools(evaluation=2, transductive=True))
    assert names(pretraining) == names(some)
    assert len(evaluation) == 2
    both = split(some, Pools(evaluation=["e1"], pretraining=["e1", "e2"], transductive=True))
    assert [names(pool) for pool in both] == [{"e1", "e2"}, {"e1"}]


def test_every_fault_of_the_pools_is_told_at_once():
    some = [*cases(4), *cases(2, "pseudo"), case("e0", dataset="other"), *cases(1, "none")]
    told = faults(some, evaluation=["ct/e1", "ct/e1", "e0", "p0", "nobody"], pretraining=["ct/e1", "x2"])
    what_is_told = ["stands twice", "ct/e0 or other/e0", "'ct/p0' has no exhaustive", "'nobody'", "pool, too", "'x2'"]
    for what in what_is_told:
        assert sum(what in fault for fault in told) == 1, (what, told)
    assert len(told) == 6


@pytest.mark.parametrize(
    ("pools", "what"),
    [
        ({"evaluation": 0}, "asks for 0"),
        ({"evaluation": []}, "list is empty"),
        ({"evaluation": 4}, "no patient is left"),
        ({"evaluation": 2, "pretraining": 3}, "asks for 3 patients, but there are 2 left"),
        ({"evaluation": 2, "pretraining": 0}, "asks for 0"),
    ],
)
def test_pools_that_cannot_be(pools, what):
    told = faults(cases(4), **pools)
    assert len(told) == 1
    assert what in told[0]


def test_a_pretraining_pool_does_not_change_with_the_labels(tmp_path):
    some = cases(3)
    redrawn = [Case(**{**vars(c), "label_fingerprint": "other"}) for c in some]
    paths = {}
    for labels in (False, True):
        for what, pool in (("old", some), ("new", redrawn)):
            paths[labels, what] = tmp_path / f"{labels}-{what}.json"
            write_pool(paths[labels, what], pool, labels=labels)
    assert paths[False, "old"].read_bytes() == paths[False, "new"].read_bytes()
    assert paths[True, "old"].read_bytes() != paths[True, "new"].read_bytes()
    assert [m.case for m in read_pool(paths[True, "old"])] == ["e0", "e1", "e2"]
    assert {m.label_fingerprint for m in read_pool(paths[False, "old"])} == {None}


@given(patients=NAMES, k=st.integers(2, 5), seed=st.integers(0, 3))
def test_folds_part_the_patients_evenly(patients, k, seed):
    if len(patients) < k:
        with pytest.raises(NemesisError, match="Lower"):
            folds(patients, k, seed)
        return
    parts = folds(patients, k, seed)
    assert sorted(p for part in parts for p in part) == sorted(patients)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert all(part == sorted(part) for part in parts)
    assert folds(sorted(patients, reverse=True), k, seed) == parts


@given(patients=NAMES, draw=st.integers(0, 4), seed=st.integers(0, 3))
def test_label_subsets_are_nested(patients, draw, seed):
    fractions = [0.1, 0.25, 0.5, 1.0]
    subsets = label_subsets(patients, fractions, draw, seed)
    for small, large in itertools.pairwise(fractions):
        assert set(subsets[small]) <= set(subsets[large])
    for f in fractions:
        assert len(subsets[f]) == max(2, round(f * len(patients)))
    assert subsets[1.0] == sorted(patients)
    assert label_subsets(patients[::-1], fractions, draw, seed) == subsets


def test_draws_differ():
    patients = [f"p{i}" for i in range(50)]
    assert len({tuple(label_subsets(patients, [0.1], draw, 0)[0.1]) for draw in range(5)}) == 5
