"""A small finished experiment on disk, made of fixed formulas: what the jobs of the report find when they start."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nemesis.evaluation.rows import write_rows

ORGANS = ("liver", "spleen", "left kidney", "gallbladder")
FRACTIONS = (0.25, 1.0)
PATIENTS, PER_PATIENT, FOLDS = 10, 12, 5
METHODS = (
    ("nemesis", "NEMESIS", (0, 1), 1.6),
    ("ae", "Auto_encoder & co", (0,), 0.9),
    ("random_vit", "Random ViT", (0,), 0.5),
)


@dataclass(frozen=True)
class Report:
    """The specification of the small experiment and the folders of its jobs."""

    spec: dict[str, Any]
    root: Path
    collected: Path
    tables: Path
    figures: Path
    page: Path


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """Every job of the report but the tracking, run once; not to be written to."""
    from nemesis.report.collect import collect
    from nemesis.report.figures import draw_figures
    from nemesis.report.page import write_page
    from nemesis.report.tables import print_tables

    root = tmp_path_factory.mktemp("report")
    spec = make_experiment(root)
    made = Report(spec, root, root / "collected", root / "tables", root / "figures", root / "page" / "index.html")
    collect(made.spec, made.collected)
    print_tables(made.spec, made.collected, made.tables)
    draw_figures(made.spec, made.collected, made.tables, made.figures)
    write_page(made.spec, made.tables, made.figures, made.page)
    return made


def make_experiment(root: Path, datasets: tuple[str, ...] = ("phantom",)) -> dict[str, Any]:
    """Write run and evaluation folders under ``root``; the specification that the report's jobs take."""
    runs = []
    for method, label, seeds, skill in METHODS:
        for seed in seeds:
            run = f"{method}-s{seed}-0123456789ab"
            entry = {"run": run, "label": label, "method": method, "seed": seed}
            entry |= {"evaluation": str(root / "evaluation" / run), "folder": str(root / "runs" / run)}
            _run_folder(Path(entry["folder"]), method, seed)
            _evaluation_folder(Path(entry["evaluation"]), run, method, seed, skill, datasets)
            runs.append(entry)
    return {
        "experiment": "small",
        "config": {"experiment": "small", "organs": list(ORGANS), "superpatch": 16},
        "config_hash": "abcdef012345",
        "versions": {"data": 1, "report": 1},
        "datasets": list(datasets),
        "patients": {"pretraining": 20, "evaluation": PATIENTS},
        "transductive": 0,
        "bootstrap": 200,
        "seed": 0,
        "runs": runs,
    }


def _run_folder(folder: Path, method: str, seed: int) -> None:
    folder.mkdir(parents=True)
    trains = method != "random_vit"
    identity = {
        "method": method,
        "seed": seed,
        "settings": {"embed_dim": 48},
        "pretraining": {"steps": 40} if trains else None,
    }
    (folder / "run.json").write_text(json.dumps(identity))
    (folder / "checkpoint.safetensors").write_bytes(f"weights of {method} {seed}".encode())
    (folder / "timing.json").write_text(json.dumps({"seconds": 12.5, "peak_memory_mib": 700.0, "device": "cpu"}))
    points = [
        {"step": s, "learning_rate": 1e-4, "loss": 0.2 / s**0.5 + 0.01 * seed, "psnr": 12 + s / 10} for s in (10, 20, 30, 40)
    ]
    (folder / "curve.jsonl").write_text("".join(json.dumps(p) + "\n" for p in points) if trains else "")


def _evaluation_folder(folder: Path, run: str, method: str, seed: int, skill: float, datasets: tuple[str, ...]) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(7)
    total = PATIENTS * PER_PATIENT
    truth = rng.random((total, len(ORGANS))) < (0.5, 0.3, 0.25, 0.0)  # no gallbladder anywhere
    easy = rng.random(total) < 0.25
    truth[easy] = False
    noise = np.random.default_rng([11, len(method), seed]).normal(size=(2, len(FRACTIONS), *truth.shape))
    patient = np.arange(total) // PER_PATIENT
    columns: dict[str, list[Any]] = {}
    rows: list[dict[str, Any]] = []
    for p, protocol in enumerate(("linear", "knn")):
        for f, fraction in enumerate(FRACTIONS):
            draws = (0, 1) if fraction < 1 else (0,)
            for draw in draws:
                for o, organ in enumerate(ORGANS):
                    logit = skill * (0.6 + 0.4 * fraction) * (truth[:, o] * 2 - 1) - 0.5 + noise[p, f, :, o] + 0.3 * draw
                    score = np.round(1 / (1 + np.exp(-logit - 2 * (easy * -1.0))), 4)
                    part = {"superpatch": range(total), "truth": truth[:, o], "score": score, "easy": easy}
                    part |= {
                        "protocol": [protocol] * total,
                        "organ": [organ] * total,
                        "label_fraction": [fraction] * total,
                    }
                    part |= {"draw": [draw] * total, "fold": patient % FOLDS, "threshold": [0.35] * total}
                    part |= {"patient": [f"{datasets[0]}/s{n:02}" for n in patient]}
                    for name, values in part.items():
                        columns.setdefault(name, []).extend(np.asarray(values).tolist())
                    if organ != "gallbladder":
                        for fold in range(FOLDS):
                            place = {
                                "protocol": protocol,
                                "label_fraction": fraction,
                                "draw": draw,
                                "fold": fold,
                                "organ": organ,
                            }
                            place["selection"] = "fixed" if fraction < 1 else "inner validation"
                            rows.append(place | {"metric": "auroc", "value": 0.5 + skill / 5, "easy_negatives": "out"})
            lacking = {"metric": "chance_organs", "value": 3 if fraction < 1 else 0, "easy_negatives": "out"}
            rows.append({"protocol": protocol, "label_fraction": fraction} | lacking)
    for fraction, patients in zip(FRACTIONS, (2, 8), strict=True):
        for fold in range(FOLDS):
            place = {"label_fraction": fraction, "draw": 0, "fold": fold}
            rows.append(place | {"metric": "training_patients", "value": patients, "unit": "patients"})
            rows.append(place | {"metric": "training_superpatches", "value": 9 * patients, "unit": "superpatches"})
    for o, organ in enumerate(ORGANS):
        rows.append({"organ": organ, "metric": "prevalence", "easy_negatives": "out", "value": float(truth[~easy, o].mean())})
    if method != "random_vit":
        rows += [row for dataset in datasets for row in _reconstruction_rows(dataset, method == "nemesis", seed)]
        np.savez(folder / "reconstruction.npz", **material())
    words = {name: pa.dictionary(pa.int8(), pa.string()) for name in ("protocol", "organ")}
    table = pa.table({n: pa.array(v).cast(words[n]) if n in words else v for n, v in columns.items()})
    pq.write_table(table, folder / "predictions.parquet")
    write_rows(folder / "rows.parquet", [{"run": run} | row for row in rows])
    (folder / "timing.json").write_text(json.dumps({"seconds": 3.25, "device": "cpu"}))


def _reconstruction_rows(dataset: str, masks: bool, seed: int) -> list[dict[str, Any]]:
    common = {
        "dataset": dataset,
        "scope": "superpatch",
        "easy_negatives": "out",
        "n_patients": PATIENTS,
        "n_superpatches": 90,
    }
    figures = [(False, "whole", "psnr", 24.0), (False, "whole", "ssim", 0.71)]
    if masks:
        figures += [(True, "masked", "psnr", 21.5), (True, "visible", "psnr", 23.5), (True, "whole", "psnr", 22.75)]
        figures += [(True, "whole", "ssim", 0.615), (True, "masked", "psnr_visible_mean", 18.125)]
        figures += [(True, None, "effective_mask_ratio", 0.75)]
    rows = []
    for masked, region, metric, value in figures:
        step = 1.0 if metric.startswith("psnr") else 0.0625
        value += step * seed / 4
        row = common | {"input_masked": masked, "region": region, "metric": metric, "value": value}
        rows += [row, row | {"easy_negatives": "in", "value": value + 2 * step, "n_superpatches": 120}]
        if metric in ("psnr", "ssim"):
            whole = {"scope": "stitched", "easy_negatives": "in", "value": value + step}
            rows.append(row | whole | {"n_patients": 1, "n_superpatches": None})
    return rows


def material() -> dict[str, Any]:
    """A volume in which right, anterior and head differ (D, H, W), half of it hidden."""
    volume = np.zeros((12, 20, 16), np.uint8)
    volume[1:11, 2:18, 2:14] = 90
    volume[2:4, 14:17, 6:9] = 255  # a stone: inferior, right
    volume[8:10, 9:11, 12:14] = 200  # a button: superior, anterior
    hidden = np.zeros(volume.shape, bool)
    hidden[:, ::2] = True
    guess = np.where(hidden, 100, volume).astype(np.uint8)
    return {"input": volume, "reconstruction": guess, "hidden": hidden, "spacing": np.array([5.0, 2.0, 3.0])}
