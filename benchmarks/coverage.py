"""How often the intervals and tests of the tables are right, by simulated cohorts of which the truth is known.

    python -m benchmarks.coverage --repetitions 1000 --out benchmarks/results/coverage.json
    python -m benchmarks.coverage --probe suite --repetitions 500 --patients 18 --out benchmarks/results/coverage_suite.json

A cohort has patients with 12 superpatches each, of whom some show little (every patient has a prevalence and a strength of the
signal of their own), and two organs. An encoder's features are 24 numbers: directions that tell the organs, noise of the patient
and noise of the superpatch. They are probed by the suite's folds and nested label draws, with ridge regression in the place of
logistic regression, since all its fits of a cohort are one batched solve; ``--probe suite`` takes the suite's own, which needs
about ten times as long. Estimates and tests are the suite's. Three encoders are judged in every cohort: one, another that is
exactly as good (its noise is its own), and one whose signal is stronger.

The truth of a figure is its mean over all repetitions. For each number of patients the program prints how often the 95 % interval
held the truth (AUROC, average precision, F1; AUROC at half of the labels; AUROC where labels were drawn only once, so that the
interval is of test patients alone; the difference to the stronger encoder), in what share the alike encoders were told apart
(p < 0.05), and in what share the stronger one was: the power.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from nemesis.config import Probe
from nemesis.evaluation.cells import Floats
from nemesis.evaluation.probe import probe
from nemesis.evaluation.problems import Data, Problem, problems
from nemesis.evaluation.statistics import Estimate, Scores, paired_difference, summarise
from nemesis.files import write_text

PATIENTS = (12, 18, 30, 60)
SUPERPATCHES, FEATURES, ORGANS = 12, 24, ("liver", "spleen")
STRENGTH, STRONGER = 2.2, 2.6  # of the signal, in standard deviations of a superpatch's noise
BETWEEN_PATIENTS = 0.5  # standard deviation of a patient's noise, in the same unit
SPREAD = 0.3  # standard deviation of the logarithm of a patient's strength
PREVALENCE = (4.0, 6.0)  # of a patient, from this beta distribution
RIDGE = 10.0
SETTINGS = Probe(folds=5, label_fractions=[0.5, 1.0], draws=5, protocols=["linear"], threads=1)

Judge = Literal["ridge", "suite"]
Truth = NDArray[np.bool_]


def main() -> None:
    """Parse, simulate, print, and keep the figures where ``--out`` says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=1000, help="cohorts of each number of patients")
    parser.add_argument("--patients", type=int, nargs="+", default=list(PATIENTS))
    parser.add_argument("--resamples", type=int, default=1000, help="of each interval")
    parser.add_argument("--probe", choices=("ridge", "suite"), default="ridge")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file to keep the figures in")
    a = parser.parse_args()
    start = time.perf_counter()
    cohorts = {n: simulate(n, a.repetitions, a.resamples, a.seed, a.probe) for n in a.patients}
    found = {
        "repetitions": a.repetitions, "resamples": a.resamples, "probe": a.probe, "seed": a.seed,
        "monte_carlo_error": float(np.sqrt(0.95 * 0.05 / a.repetitions)),
        "seconds": round(time.perf_counter() - start, 1),
        "patients": {str(n): cohort for n, cohort in cohorts.items()},
    }  # fmt: skip
    print_table(found)
    if a.out:
        write_text(a.out, json.dumps(found, indent=1) + "\n")


def simulate(patients: int, repetitions: int, resamples: int, seed: int, judge: Judge = "ridge") -> dict[str, Any]:
    """Figures of so many cohorts of so many patients: ``coverage`` (see :func:`covered`) by figure, ``alike_told_apart`` and
    ``power``, shares of the repetitions."""
    rng = np.random.default_rng([seed, patients])
    directions = np.linalg.qr(rng.normal(size=(FEATURES, len(ORGANS))))[0].T
    clinic = Clinic.of(patients)
    estimates: dict[str, list[Estimate]] = {}
    for repetition in range(repetitions):
        truth, strength = clinic.draw(rng)
        encoders = [features(rng, truth, strength * own, directions) for own in (STRENGTH, STRENGTH, STRONGER)]
        judged = [Scores(clinic.judge(truth, x, judge)) for x in encoders]
        for name, estimate in _figures(judged, resamples, repetition):
            estimates.setdefault(name, []).append(estimate)
    alike, stronger = estimates.pop("alike"), estimates["difference"]
    return {
        "coverage": {name: covered(found) for name, found in estimates.items()},
        "alike_told_apart": _told_apart(alike),
        "power": _told_apart(stronger),
    }


def _figures(judged: Sequence[Scores], resamples: int, seed: int) -> Iterable[tuple[str, Estimate]]:
    one, same, stronger = ([scores] for scores in judged)
    size: dict[str, Any] = {"resamples": resamples, "seed": seed}
    yield "auroc", summarise(one, "linear", 1.0, **size)
    yield "average_precision", summarise(one, "linear", 1.0, "average_precision", **size)
    yield "f1", summarise(one, "linear", 1.0, "f1", **size)
    yield "auroc_half_the_labels", summarise(one, "linear", 0.5, **size)
    alone = one[0].predictions
    yield "auroc_labels_drawn_once", summarise([Scores(alone[alone["label_fraction"] == 1])], "linear", 1.0, **size)
    yield "difference", paired_difference(stronger, one, "linear", 1.0, **size)
    yield "alike", paired_difference(same, one, "linear", 1.0, **size)


def covered(estimates: Sequence[Estimate]) -> dict[str, float]:
    """``mean`` (taken for the truth) and ``sd`` of the figure over repetitions; ``share`` of intervals that hold the mean, and
    their mean ``width``."""
    points = np.array([estimate.point for estimate in estimates], np.float64)
    low, high = (np.array([getattr(estimate, end) for estimate in estimates], np.float64) for end in ("low", "high"))
    mean = float(points.mean())  # an interval that is not there (NaN) holds nothing
    share = float(np.mean((low <= mean) & (mean <= high)))
    return {"mean": mean, "sd": float(points.std()), "share": share, "width": float(np.nanmean(high - low))}


def _told_apart(estimates: Sequence[Estimate]) -> float:
    return float(np.mean([estimate.p is not None and estimate.p < 0.05 for estimate in estimates]))


def features(rng: np.random.Generator, truth: Truth, strength: Floats, directions: Floats) -> Floats:
    """(n, superpatches, features) of an encoder: the organs' directions (organs, features), each as strong as its patient's
    ``strength`` (n,), where ``truth`` (n, superpatches, organs) has them; and noise."""
    n = len(truth)
    noise = rng.normal(size=(n, SUPERPATCHES, FEATURES)) + BETWEEN_PATIENTS * rng.normal(size=(n, 1, FEATURES))
    return np.asarray(noise + strength[:, None, None] * (truth @ directions))


@dataclass(frozen=True)
class Clinic:
    """Where cohorts of n patients come from, and how they are probed."""

    names: NDArray[np.object_]  # (n,)
    problems: Sequence[Problem]
    train: Floats  # (problems, n): 1 for who is trained on
    test: Sequence[NDArray[np.intp]]  # of each problem, places of who is tested

    @classmethod
    def of(cls, patients: int) -> Clinic:
        """The suite's folds and label draws of so many patients."""
        names = np.array([f"simulated/{number:04}" for number in range(patients)], object)
        known = np.ones((patients, len(ORGANS)), bool)
        asked = problems(
            Data(known, known, ~known[:, 0], names), SETTINGS.folds, SETTINGS.split_seed, SETTINGS.label_fractions, SETTINGS.draws
        )
        train = np.array([[name in problem.train for name in names] for problem in asked], np.float64)
        return cls(names, asked, train, [np.flatnonzero([name in problem.test for name in names]) for problem in asked])

    def draw(self, rng: np.random.Generator) -> tuple[Truth, Floats]:
        """Which organs the superpatches (n, superpatches, organs) hold, and how strongly each patient (n,) shows them."""
        n = len(self.names)
        prevalence = rng.beta(*PREVALENCE, size=(n, 1, len(ORGANS)))
        return rng.random((n, SUPERPATCHES, len(ORGANS))) < prevalence, np.exp(SPREAD * rng.normal(size=n))

    def judge(self, truth: Truth, x: Floats, judge: Judge) -> pd.DataFrame:
        """Predictions (:data:`nemesis.evaluation.problems.PREDICTIONS`) from features (n, superpatches, features)."""
        if judge == "ridge":
            return self._ridge(truth, x)
        table = pd.DataFrame(truth.reshape(-1, len(ORGANS)).astype(np.int8), columns=list(ORGANS))
        table = table.assign(dataset="simulated", easy=False)
        table["patient"] = np.repeat([name.partition("/")[2] for name in self.names], SUPERPATCHES)
        with contextlib.redirect_stdout(io.StringIO()):  # its progress
            predictions: pd.DataFrame = probe(x.reshape(len(table), -1).astype(np.float32), table, ORGANS, SETTINGS)[
                0
            ].to_pandas()
        return predictions

    def _ridge(self, truth: Truth, x: Floats) -> pd.DataFrame:
        """Every problem's ridge regression from the patients' sums, and what it says of its test patients."""
        n = len(self.names)
        design = np.concatenate([x, np.ones((n, SUPERPATCHES, 1))], 2)
        products = np.einsum("nsf,nsg->nfg", design, design).reshape(n, -1)
        targets = np.einsum("nsf,nso->nfo", design, truth.astype(np.float64)).reshape(n, -1)
        penalty = np.diag([RIDGE] * FEATURES + [1e-6])  # the intercept's is there against singular sums alone
        normal = (self.train @ products).reshape(-1, FEATURES + 1, FEATURES + 1) + penalty
        weights = np.linalg.solve(normal, (self.train @ targets).reshape(-1, FEATURES + 1, len(ORGANS)))
        parts: list[Mapping[str, Any]] = []
        for problem, test, own in zip(self.problems, self.test, weights, strict=True):
            score = expit(4 * (design[test] @ own - 0.5))
            for number in range(len(ORGANS)):
                place = {"label_fraction": problem.fraction, "draw": problem.draw, "fold": problem.fold, "organ": number}
                rows = (test[:, None] * SUPERPATCHES + np.arange(SUPERPATCHES)).ravel()
                parts.append(place | {"rows": rows, "truth": truth[test, :, number].ravel(), "score": score[..., number].ravel()})
        lengths = [len(part["rows"]) for part in parts]
        frame = pd.DataFrame({name: np.repeat([p[name] for p in parts], lengths) for name in ("label_fraction", "draw", "fold")})
        frame["superpatch"], frame["truth"], score = (
            np.concatenate([p[name] for p in parts]) for name in ("rows", "truth", "score")
        )
        frame["score"] = score.astype(np.float32)
        frame["organ"] = pd.Categorical.from_codes(np.repeat([p["organ"] for p in parts], lengths), pd.Index(ORGANS))
        frame["patient"] = pd.Categorical.from_codes(frame["superpatch"] // SUPERPATCHES, pd.Index(self.names))
        return frame.assign(protocol="linear", threshold=np.float32(0.5), easy=False)


def print_table(found: Mapping[str, Any]) -> None:
    """The figures for a person."""
    error = found["monte_carlo_error"]
    print(
        f"{found['repetitions']} cohorts each, {found['probe']} probe, {found['seconds']} s; shares of 0.95 ± {1.96 * error:.3f}"
    )
    names = list(next(iter(found["patients"].values()))["coverage"])
    print(f"\n| patients | {' | '.join(names)} | alike told apart | difference | power |")
    print("| --- " * (len(names) + 4) + "|")
    for patients, figures in found["patients"].items():
        shares = " | ".join(f"{figures['coverage'][name]['share']:.3f}" for name in names)
        planted = figures["coverage"]["difference"]["mean"]
        print(f"| {patients} | {shares} | {figures['alike_told_apart']:.3f} | {planted:+.3f} | {figures['power']:.3f} |")


if __name__ == "__main__":
    main()
