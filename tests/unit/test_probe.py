"""The probe: scikit-learn's fit, honest selection, unknown organs, chance cells, same bits on any thread count."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from nemesis.config import Probe
from nemesis.errors import NemesisError
from nemesis.evaluation.probe import _principal, best_threshold, fit_logistic, probe, standardise

ORGANS = ["liver", "spleen"]


def cohort(patients: int = 10, per_patient: int = 12, n_features: int = 20, seed: int = 0) -> tuple[Any, pd.DataFrame]:
    """Features that hold the two organs among noise; every fourth superpatch is an easy negative."""
    random = np.random.default_rng(seed)
    n = patients * per_patient
    latent = random.normal(size=(n, 2))
    easy = np.arange(n) % 4 == 3
    truth = (latent + 0.3 * random.normal(size=(n, 2)) > 0.3) & ~easy[:, None]
    features = latent @ random.normal(size=(2, n_features)) + random.normal(size=(n, n_features)) + 3
    table = pd.DataFrame(truth.astype(np.int8), columns=ORGANS)
    table["dataset"], table["easy"] = "ct", easy
    table["patient"] = table["case"] = np.repeat([f"p{i:02d}" for i in range(patients)], per_patient)
    return features.astype(np.float32), table


def small(**changes: Any) -> Probe:
    return Probe(**({"label_fractions": [0.5, 1.0], "draws": 2, "folds": 2, "neighbours": 5} | changes))


@pytest.mark.parametrize(("n", "f"), [(60, 20), (30, 80)])
def test_logistic_regression_is_scikit_learns(n: int, f: int) -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(n, f)) * np.geomspace(10, 0.01, f)
    x -= x.mean(0)
    truth = x[:, :3] @ random.normal(size=(3, 4)) + random.normal(size=(n, 4)) > 1
    weight = random.random((n, 4)) < 0.8
    c = np.array([0.001, 0.01, 1.0, 10.0])
    basis, z = _principal(x)
    assert z.shape[1] <= min(n, f)
    found = fit_logistic(z, truth, weight, c, tolerance=1e-6)
    for k in range(4):
        rows = weight[:, k]
        reference = LogisticRegression(C=c[k], tol=1e-10, max_iter=10000).fit(x[rows], truth[rows, k])
        np.testing.assert_allclose(basis @ found[:-1, k], reference.coef_[0], atol=1e-4)
        np.testing.assert_allclose(found[-1, k], reference.intercept_[0], atol=1e-4)


def test_scores_are_those_of_an_exact_fit() -> None:
    features, table = cohort(patients=20, n_features=100)
    settings = small(label_fractions=[1.0], protocols=["linear"], regularisation=[0.01, 1.0])
    predictions, rows = probe(features, table, ORGANS, settings)
    chosen = {(r["fold"], r["organ"]): r["value"] for r in rows if r["metric"] == "regularisation"}
    frame = predictions.to_pandas()
    for (fold, organ), group in frame.groupby(["fold", "organ"], observed=True):
        test = group["superpatch"].to_numpy()
        train = np.setdiff1d(np.arange(len(table)), test)
        train = train[~table["easy"].to_numpy()[train]]
        x, x_test = standardise(features[train], features[test])
        exact = LogisticRegression(C=chosen[fold, organ], tol=1e-10, max_iter=10000)
        exact.fit(x, table[organ].to_numpy()[train])
        np.testing.assert_allclose(group["score"], exact.predict_proba(x_test)[:, 1], atol=1e-4)


def test_a_probe_finds_what_features_hold() -> None:
    features, table = cohort(patients=12)
    predictions, rows = probe(features, table, ORGANS, small())
    values = pd.DataFrame(rows)
    auroc = values[(values["metric"] == "auroc") & (values["easy_negatives"] == "out")]
    assert auroc.groupby("protocol")["value"].mean().min() > 0.8
    assert set(auroc["selection"]) == {"fixed", "inner validation"}
    assert set(values[values["label_fraction"] == 1.0]["draw"].dropna()) == {0}
    assert values[values["metric"] == "prevalence"]["n_superpatches"].tolist() == [108, 108, 144, 144]
    frame = predictions.to_pandas()
    per_problem = frame.groupby(["protocol", "label_fraction", "draw", "organ"], observed=True)["superpatch"]
    assert (per_problem.nunique() == len(table)).all()  # everybody is tested exactly once
    assert (per_problem.size() == len(table)).all()
    assert frame["score"].between(0, 1).all()


def test_labels_of_test_patients_and_easy_negatives_are_never_learnt_from() -> None:
    features, table = cohort()
    before = probe(features, table, ORGANS, small())[0].to_pandas()
    tested = before["superpatch"][before["fold"] == 0].unique()
    spoilt = table.copy()
    spoilt.loc[tested, ORGANS] = 1 - spoilt.loc[tested, ORGANS]
    after = probe(features, spoilt, ORGANS, small())[0].to_pandas()
    here = (before["fold"] == 0).to_numpy()
    pd.testing.assert_frame_equal(before[here].drop(columns="truth"), after[here].drop(columns="truth"))
    features[table["easy"]] += 100.0
    moved = probe(features, table, ORGANS, small())[0].to_pandas()
    hard = (~before["easy"]).to_numpy()
    pd.testing.assert_series_equal(before["score"][hard], moved["score"][hard])


def test_unknown_organs_are_neither_fitted_nor_scored() -> None:
    features, table = cohort()
    unknown = table["patient"].isin(["p00", "p01"])
    table.loc[unknown, "liver"] = -1
    frame = probe(features, table, ORGANS, small())[0].to_pandas()
    assert not frame[frame["organ"] == "liver"]["patient"].isin(["ct/p00", "ct/p01"]).any()
    assert frame[frame["organ"] == "spleen"]["patient"].isin(["ct/p00"]).any()
    features[unknown.to_numpy(), :] = np.random.default_rng(9).normal(size=(int(unknown.sum()), features.shape[1]))
    known = table[~unknown].index
    again = probe(features, table, ORGANS, small(protocols=["knn"]))[0].to_pandas()
    assert again[again["organ"] == "liver"]["superpatch"].isin(known).all()


def test_an_organ_without_both_classes_scores_one_half_and_is_counted() -> None:
    features, table = cohort(patients=6)
    fold = probe(features, table, ORGANS, small())[0].to_pandas().groupby("fold")["superpatch"].unique()
    table.loc[fold[1], "spleen"] = 0  # trained on by fold 0
    predictions, rows = probe(features, table, ORGANS, small(label_fractions=[1.0]))
    values = pd.DataFrame(rows)
    cell = values[(values["fold"] == 0) & (values["organ"] == "spleen")]
    assert cell[cell["metric"] == "auroc"]["value"].tolist() == [0.5] * 4  # two protocols, easy negatives out and in
    assert (values[values["metric"] == "chance_organs"]["value"] == 1).all()
    frame = predictions.to_pandas()
    assert (frame[(frame["fold"] == 0) & (frame["organ"] == "spleen")]["score"] == 0.5).all()
    assert values[(values["metric"] == "auroc") & (values["organ"] == "spleen")]["fold"].unique().tolist() == [0]


@pytest.mark.parametrize("patients", [3, 4, 7])
def test_few_patients(patients: int, capsys: pytest.CaptureFixture[str]) -> None:
    features, table = cohort(patients=patients)
    table.loc[table["patient"] == "p00", "liver"] = -1
    _, rows = probe(features, table, ORGANS, small(folds=5))
    values = pd.DataFrame(rows)
    assert values["fold"].max() == min(5, patients) - 1
    assert (f"{patients} folds, not 5" in capsys.readouterr().out) == (patients < 5)
    assert (values[values["metric"] == "training_patients"]["value"] >= 2).all()


def test_too_few_patients_are_refused() -> None:
    features, table = cohort(patients=4)
    table.loc[table["patient"] > "p01", ORGANS] = -1
    with pytest.raises(NemesisError, match="3 evaluation patients"):
        probe(features, table, ORGANS, small())


def test_constant_features_and_a_single_superpatch_a_patient() -> None:
    _, table = cohort(patients=6, per_patient=2)
    predictions, _ = probe(np.ones((12, 5), np.float32), table, ORGANS, small())
    assert np.isfinite(predictions.to_pandas()["score"]).all()


def test_the_number_of_threads_changes_no_bit() -> None:
    features, table = cohort(n_features=60)
    one, rows_one = probe(features, table, ORGANS, small(threads=1))
    three, rows_three = probe(features, table, ORGANS, small(threads=3))
    assert one.equals(three)
    assert rows_one == rows_three


def test_best_threshold_maximises_f1() -> None:
    random = np.random.default_rng(0)
    for _ in range(30):
        truth = random.random(25) < 0.4
        truth[0] = True
        score = np.round(random.random(25), 1).astype(np.float32)
        found = f1_score(truth, score > np.float32(best_threshold(truth, score)))
        assert found == pytest.approx(max(f1_score(truth, score > t) for t in [-1.0, *np.unique(score)]))
