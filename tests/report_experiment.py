"""A small finished experiment on disk, made of fixed formulas: what the jobs of the report find when they start.

Its rows are what the statistics make of its predictions and reconstructions, as in a real one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from nemesis.evaluation import OPTIMISTIC, RELEASED_HEAD, RELEASED_HEAD_PEEKED
from nemesis.evaluation.cells import METRICS, cell_score, cells
from nemesis.evaluation.finetune import SEGMENTATIONS
from nemesis.evaluation.reconstruction import RECONSTRUCTIONS
from nemesis.evaluation.rows import write_rows
from nemesis.finetuning import ARMS, Arm, protocol_of

ORGANS = ("liver", "spleen", "left kidney", "gallbladder")
FRACTIONS = (0.25, 1.0)
PATIENTS, PER_PATIENT, FOLDS = 24, 12, 5
METHODS = (
    ("nemesis", "NEMESIS", (0, 1), 1.6),
    ("ae", "Auto_encoder & co", (0,), 0.9),
    ("random_vit", "Random ViT", (0,), 0.5),
)
EMBED_DIMS, MASK_RATIOS = (48, 96), (0.5, 0.75)
VARIANTS = (  # label, group, settings that differ, superpatch, skill; the first is the method as configured
    ("as configured", "", {}, 16, 1.6),
    ("plane alone", "masking", {"plane_mask_ratio": 0.75, "axis_mask_ratio": 0.0}, 16, 1.4),
    ("axis alone", "masking", {"plane_mask_ratio": 0.0, "axis_mask_ratio": 0.75}, 16, 1.0),
    ("no noise", "noise", {"noise": [0.0]}, 16, 1.59),
    ("superpatch 32³", "superpatch", {}, 32, 1.7),
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
            entry = {"run": run, "part": "methods", "label": label, "method": method, "seed": seed}
            runs.append(_run(root, entry, {}, 16, skill, datasets))
    for number, (dim, ratio) in enumerate(product(EMBED_DIMS, MASK_RATIOS)):
        entry = {"run": f"nemesis-s0-{number:012x}", "part": "sweep", "label": f"E {dim}, r {ratio}", "method": "nemesis"}
        entry |= {"seed": 0, "embed_dim": dim, "mask_ratio": ratio}
        settings = {"embed_dim": dim, "plane_mask_ratio": ratio, "axis_mask_ratio": ratio}
        runs.append(_run(root, entry, settings, 16, 1.2 + 0.1 * number, datasets))
    for number, (label, group, settings, edge, skill) in enumerate(VARIANTS, 100):
        entry = {"run": f"nemesis-s0-{number:012x}", "part": "ablations", "label": label, "group": group}
        entry |= {"method": "nemesis", "seed": 0}
        runs.append(_run(root, entry, settings, edge, skill, datasets))
    fewer = {"method": "NEMESIS", "seeds": None, "pretraining": {"steps": 20}}
    sweep = fewer | {"embed_dims": list(EMBED_DIMS), "mask_ratios": list(MASK_RATIOS), "search": None}
    variants = [
        {"label": label, "group": group, "settings": settings, "superpatch": None if edge == 16 else edge, "pretraining": {}}
        for label, group, settings, edge, _ in VARIANTS[1:]
    ]
    pretraining = {"steps": 40, "batch_size": 4}
    config = {"experiment": "small", "organs": list(ORGANS), "superpatch": 16, "pretraining": pretraining}
    config["datasets"] = [{"reader": "phantom", "name": name} for name in datasets]
    config["probe"] = {"folds": FOLDS}
    config["finetune"] = {
        "batch_size": 4,
        "learning_rates": [1e-4, 1e-3],
        "checks": 2,
        "fixed_learning_rate": 3e-4,
        "surface_tolerance_mm": 2.0,
    }
    write_audit(root / "audit.json", [])
    return {
        "experiment": "small",
        "config": config | {"sweep": sweep, "ablations": fewer | {"variants": variants}},
        "config_hash": "abcdef012345",
        "versions": {"data": 1, "report": 1},
        "datasets": list(datasets),
        "data": [
            {"dataset": name, "pool": pool, "patients": n // len(datasets), "scans": n // len(datasets), "kinds": kinds}
            for name in datasets
            for pool, n, kinds in (("pretraining", 20, {"none": 20}), ("evaluation", PATIENTS, {"exhaustive": PATIENTS}))
        ],
        "audit": str(root / "audit.json"),
        "transductive": 0,
        "lpips": {"network": "alex", "sha256": None},
        "bootstrap": 300,
        "seed": 0,
        "runs": runs,
    }


def write_audit(path: Path, pairs: list[dict[str, Any]]) -> None:
    """What the audit of the pools says, with these pairs."""
    scans = {"pretraining": 20, "evaluation": PATIENTS}
    path.write_text(json.dumps({"transductive": bool(pairs), "scans": scans, "pairs": pairs, "not_compared": []}))


def _run(
    root: Path, entry: dict[str, Any], settings: dict[str, Any], edge: int, skill: float, datasets: tuple[str, ...]
) -> dict[str, Any]:
    run, method, seed = entry["run"], entry["method"], entry["seed"]
    entry |= {"trained_on": None, "learns_labels": False, "finetune": {}}
    entry |= {"evaluation": str(root / "evaluation" / run), "folder": str(root / "runs" / run)}
    whole = entry["part"] == "methods"
    _run_folder(Path(entry["folder"]), method, seed, settings, edge, 40 if whole else 20)
    _evaluation_folder(Path(entry["evaluation"]), run, method, seed, settings, skill, datasets, whole)
    if whole and seed == 0:  # one seed alone is fine-tuned
        for arm in ARMS if method != "random_vit" else ("pretrained",):
            entry["finetune"][arm] = str(root / "finetune" / run / arm)
            _finetune_folder(root / "finetune" / run / arm, run, method, arm, skill, datasets)
    return entry


def _run_folder(folder: Path, method: str, seed: int, settings: dict[str, Any], edge: int, steps: int) -> None:
    folder.mkdir(parents=True)
    trains = method != "random_vit"
    masking = {"plane_masking": "columns", "axis_masking": "random"} if method == "nemesis" else {}
    identity = {
        "method": method,
        "seed": seed,
        "superpatch": edge,
        "settings": {"embed_dim": 48, "noise": [0.0, 0.05], "plane_mask_ratio": 0.5, "axis_mask_ratio": 0.5} | masking | settings,
        "pretraining": {"steps": steps, "batch_size": 4} if trains else None,
    }
    (folder / "run.json").write_text(json.dumps(identity))
    (folder / "checkpoint.safetensors").write_bytes(f"weights of {method} {seed}".encode())
    (folder / "timing.json").write_text(json.dumps({"seconds": 12.5, "peak_memory_mib": 700.0, "device": "cpu"}))
    points = [
        {"step": s, "learning_rate": 1e-4, "loss": 0.2 / s**0.5 + 0.01 * seed, "psnr": 12 + s / 10} for s in (10, 20, 30, 40)
    ]
    (folder / "curve.jsonl").write_text("".join(json.dumps(p) + "\n" for p in points) if trains else "")


def _evaluation_folder(
    folder: Path,
    run: str,
    method: str,
    seed: int,
    settings: dict[str, Any],
    skill: float,
    datasets: tuple[str, ...],
    whole: bool,
) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(7)
    total = PATIENTS * PER_PATIENT
    truth = rng.random((total, len(ORGANS))) < (0.5, 0.3, 0.25, 0.0)  # no gallbladder anywhere
    easy = rng.random(total) < 0.25
    truth[easy] = False
    noise = np.random.default_rng([11, len(method), seed]).normal(size=(2, len(FRACTIONS), *truth.shape))
    patient = np.arange(total) // PER_PATIENT
    names = np.array([f"{datasets[n % len(datasets)]}/s{n:02}" for n in range(PATIENTS)])[patient]
    columns: dict[str, list[Any]] = {}
    rows: list[dict[str, Any]] = []
    fractions = FRACTIONS if whole else FRACTIONS[-1:]  # cells and variants: the linear probe at all labels alone
    for p, protocol in enumerate(("linear", "knn") if whole else ("linear",)):
        for f, fraction in enumerate(fractions):
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
                    part |= {"patient": names}
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
                            if protocol == "linear" and fraction == 1:
                                luck = np.random.default_rng([13, round(100 * skill), fold]).normal()
                                value = 0.5 + skill / 5 + 0.03 * luck
                                rows.append(place | {"metric": "validation_auroc", "value": value})
            lacking = {"metric": "chance_organs", "value": 3 if fraction < 1 else 0, "easy_negatives": "out"}
            rows.append({"protocol": protocol, "label_fraction": fraction} | lacking)
    if whole:
        _released_head(columns, rows, truth, easy, names, skill)
    for fraction, patients in zip(fractions, (2, 8)[-len(fractions) :], strict=True):
        for fold in range(FOLDS):
            place = {"label_fraction": fraction, "draw": 0, "fold": fold}
            rows.append(place | {"metric": "training_patients", "value": patients, "unit": "patients"})
            rows.append(place | {"metric": "training_superpatches", "value": 9 * patients, "unit": "superpatches"})
    for o, organ in enumerate(ORGANS):
        rows.append({"organ": organ, "metric": "prevalence", "easy_negatives": "out", "value": float(truth[~easy, o].mean())})
    costs = {"parameters": 1e6 * skill, "encode_macs": 1e8 * skill, "pretext_macs": 2e8 * skill if skill > 0.5 else None}
    costs |= {"encoder_parameters": 6e5 * skill, "encode_macs_fvcore": 1.01e8 * skill}
    if method != "random_vit":
        costs |= {"reconstruct_macs": 3e8 * skill, "reconstruct_macs_fvcore": 2.94e8 * skill}
    if method == "nemesis":
        costs |= {"encode_macs_formula": 1e8 * skill, "reconstruct_macs_formula": 3e8 * skill}
    if method != "random_vit":
        costs |= {"sample_voxels": 16**3, "trained_psnr": 10 * skill, "untrained_psnr": 5.0}
    units = dict.fromkeys(("parameters", "encoder_parameters"), "parameters") | {"sample_voxels": "voxels"}
    units |= dict.fromkeys(("trained_psnr", "untrained_psnr"))
    rows += [{"metric": m, "unit": units.get(m, "MAC"), "value": value} for m, value in costs.items() if value is not None]
    told = pd.DataFrame(columns)
    rows += _score_rows(told[told["protocol"] != RELEASED_HEAD_PEEKED])
    each = RECONSTRUCTIONS.empty_table()
    if method != "random_vit":
        each = _each(names, easy, method == "nemesis", settings, skill + seed / 8)
        rows += _reconstruction_rows(each.to_pandas())
        np.savez(folder / "reconstruction.npz", **material(), **(attention_material() if method == "nemesis" else {}))
    words = {name: pa.dictionary(pa.int8(), pa.string()) for name in ("protocol", "organ")}
    table = pa.table({n: pa.array(v).cast(words[n]) if n in words else v for n, v in columns.items()})
    pq.write_table(table, folder / "predictions.parquet")
    pq.write_table(each, folder / "reconstructions.parquet")
    write_rows(folder / "rows.parquet", [{"run": run} | row for row in rows])
    (folder / "timing.json").write_text(json.dumps({"seconds": 3.25, "peak_memory_mib": 650.0, "device": "cpu"}))


def _released_head(
    columns: dict[str, list[Any]], rows: list[dict[str, Any]], truth: NDArray[np.bool_], easy: NDArray[np.bool_],
    names: NDArray[np.str_], skill: float,
) -> None:  # fmt: skip
    """The head whose epoch is chosen twice; the one chosen on test patients flatters."""
    total, noise = len(truth), np.random.default_rng(29).normal(size=truth.shape)
    for flattery, protocol in enumerate((RELEASED_HEAD, RELEASED_HEAD_PEEKED)):
        for o, organ in enumerate(ORGANS):
            score = 1 / (1 + np.exp(-(skill + 0.5 * flattery) * (truth[:, o] * 2 - 1) - noise[:, o]))
            part: dict[str, Any] = {"superpatch": range(total), "truth": truth[:, o], "score": np.round(score, 4), "easy": easy}
            part |= {name: [value] * total for name, value in (("protocol", protocol), ("organ", organ), ("draw", 0))}
            part |= {"label_fraction": [1.0] * total, "fold": np.arange(total) // PER_PATIENT % FOLDS, "patient": names}
            for name, values in (part | {"threshold": [0.5] * total}).items():
                columns[name].extend(np.asarray(values).tolist())
        selection = OPTIMISTIC if flattery else "inner validation"
        place = {"protocol": RELEASED_HEAD, "selection": selection, "label_fraction": 1.0, "draw": 0, "easy_negatives": "out"}
        rows += [place | {"fold": fold, "organ": "liver", "metric": "auroc", "value": 0.99} for fold in range(FOLDS)]


def _finetune_folder(folder: Path, run: str, method: str, arm: Arm, skill: float, datasets: tuple[str, ...]) -> None:
    """What fine-tuning left: three folds of five, and a segmentation by the method that is not the reference."""
    folder.mkdir(parents=True)
    skill *= {"pretrained": 1.3, "scratch": 0.8, "scratch_matched": 1.0}[arm]
    truth_rng, noise = np.random.default_rng(7), np.random.default_rng([17, len(method), len(arm)])
    total = PATIENTS * PER_PATIENT
    truth = truth_rng.random((total, len(ORGANS))) < (0.5, 0.3, 0.25, 0.0)
    easy = truth_rng.random(total) < 0.25
    truth[easy] = False
    patient = np.arange(total) // PER_PATIENT
    names = np.array([f"{datasets[n % len(datasets)]}/s{n:02}" for n in range(PATIENTS)])
    tested = np.flatnonzero(patient % FOLDS < 3)
    protocol, segments = protocol_of("presence", arm), protocol_of("segmentation", arm)
    parts = []
    for o, organ in enumerate(ORGANS):
        score = np.round(1 / (1 + np.exp(-(skill * (truth[tested, o] * 2 - 1) + noise.normal(size=len(tested))))), 4)
        part = {"protocol": protocol, "label_fraction": 1.0, "draw": 0, "fold": patient[tested] % FOLDS, "organ": organ}
        part |= {"superpatch": tested, "patient": names[patient[tested]], "truth": truth[tested, o], "score": score}
        parts.append(pd.DataFrame(part | {"threshold": 0.4, "easy": easy[tested]}))
    predictions = pd.concat(parts, ignore_index=True)
    rows = _score_rows(predictions)
    steps = 80 if arm == "scratch_matched" else 60
    tasks = [protocol] + [segments] * (method == "ae")
    costs = {"steps": steps, "trials": 2, "voxels": 1e6 * steps, "flop": 2e9 * steps * skill}
    for task in tasks:
        rows += [{"protocol": task, "metric": f"downstream_{name}", "value": float(value)} for name, value in costs.items()]
        pretraining = 4e10 if arm == "pretrained" and method != "random_vit" else 0.0
        rows.append({"protocol": task, "metric": "pretraining_flop", "unit": "FLOP", "value": pretraining})
        for fold in range(3):
            place = {"protocol": task, "label_fraction": 1.0, "draw": 0, "fold": fold, "selection": "inner validation"}
            rows.append(place | {"metric": "learning_rate", "value": 1e-3, "step": 40})
            for rate, ahead in ((1e-3, 0.1), (3e-3, 0.0)):
                for step in (steps // 3, 2 * steps // 3, steps):
                    value = ahead + 0.5 * skill * step / (step + 20) + 0.01 * fold
                    rows.append(place | {"metric": "validation", "step": step, "learning_rate": rate, "value": value})
    lines = []
    if method == "ae":
        for n in range(PATIENTS):
            for o, organ in enumerate(ORGANS[:3]):
                value = round(0.5 + 0.1 * skill - 0.05 * o + 0.02 * float(noise.normal()), 6)
                line = {"dataset": datasets[0], "protocol": segments, "selection": "inner validation", "label_fraction": 1.0}
                line |= {"draw": 0, "fold": n % FOLDS, "organ": organ, "patient": str(names[n]), "case": f"c{n}"}
                if n % FOLDS < 3:
                    missed = (n, o) == (1, 2)  # the third organ of the second patient
                    lines.append(line | {"metric": "dice", "value": 0.0 if missed else value})
                    lines.append(line | {"metric": "hd95", "value": None if missed else round(20 - 10 * value, 4)})
                    lines.append(line | {"metric": "surface_dice", "value": 0.0 if missed else round(value / 2, 6)})
            if n == 0:
                lines.append(line | {"organ": ORGANS[3], "metric": "invented", "value": 1.0})
    like = pq.read_schema(folder.parents[2] / "evaluation" / run / "predictions.parquet")
    table = pa.Table.from_pandas(predictions, preserve_index=False).select(like.names).cast(like)
    pq.write_table(table, folder / "predictions.parquet")
    pq.write_table(pa.Table.from_pylist(lines, schema=SEGMENTATIONS), folder / "segmentations.parquet")
    write_rows(folder / "rows.parquet", [{"run": run} | row for row in rows])
    (folder / "timing.json").write_text(json.dumps({"seconds": 9.5, "device": "cpu"}))


def _score_rows(predictions: pd.DataFrame) -> list[dict[str, Any]]:
    """The scores of every cell."""
    rows = []
    for protocol, fraction in predictions[["protocol", "label_fraction"]].drop_duplicates().itertuples(index=False):
        selection = "fixed" if fraction < 1 else "inner validation"
        for cell in cells(predictions, protocol, fraction).cells:
            place = {"draw": cell.draw, "fold": cell.fold, "organ": cell.organ, "selection": selection, "easy_negatives": "out"}
            place |= {"protocol": protocol, "label_fraction": fraction}
            rows += [place | {"metric": metric, "value": cell_score(cell, metric)} for metric in METRICS]
    return rows


def _each(patient: NDArray[np.str_], easy: NDArray[np.bool_], masks: bool, settings: dict[str, Any], skill: float) -> pa.Table:
    """The figures of every superpatch."""
    level = 18 + 2 * skill + np.random.default_rng(5).normal(size=len(patient)) + 2 * easy
    measures = [(False, "whole", "psnr", level + 1), (False, "whole", "ssim", 0.5 + level / 100)]
    if masks:
        hidden = 1 - (1 - settings.get("plane_mask_ratio", 0.5)) * (1 - settings.get("axis_mask_ratio", 0.5))
        measures += [(True, "masked", "psnr", level), (True, "masked", "psnr_visible_mean", level - 3)]
        measures += [(True, "visible", "psnr", level + 2), (True, "whole", "psnr", level + 1.25)]
        measures += [(True, "whole", "ssim", 0.4 + level / 100), (True, None, "effective_mask_ratio", hidden + 0 * level)]
        measures += [(False, "masked", "psnr", level + 0.75), (False, "visible", "psnr", level + 1.5)]
    scans, first = np.unique(patient, return_index=True)
    parts = []
    for masked, region, metric, value in measures:
        volumes = np.array([value[patient == scan].mean() + 1 for scan in scans])
        if metric in ("ssim", "effective_mask_ratio"):
            volumes -= 1
        scopes = [("superpatch", patient, np.arange(len(patient)), easy, value), ("stitched", scans, first, scans == "", volumes)]
        for scope, names, rows, nearly_empty, values in scopes:
            columns = {
                "dataset": [name.partition("/")[0] for name in names],
                "patient": names.tolist(),
                "scope": [scope] * len(names),
                "superpatch": rows,
                "easy": nearly_empty,
                "input_masked": [masked] * len(names),
                "region": [region] * len(names),
                "metric": [metric] * len(names),
                "value": values,
            }
            parts.append(pa.Table.from_pydict(columns, schema=RECONSTRUCTIONS))
    return pa.concat_tables(parts).unify_dictionaries().combine_chunks()


def _reconstruction_rows(each: pd.DataFrame) -> list[dict[str, Any]]:
    """The means of the figures of every superpatch and of every stitched volume."""
    datasets = sorted(each["dataset"].unique())
    rows = []
    for dataset in [*(["+".join(datasets)] if len(datasets) > 1 else []), *datasets]:
        here = each if "+" in dataset else each[each["dataset"] == dataset]
        for (scope, masked, metric, region), group in here.groupby(
            ["scope", "input_masked", "metric", "region"], dropna=False, observed=True
        ):
            row = {"dataset": dataset, "scope": scope, "input_masked": bool(masked), "metric": metric}
            row["region"] = None if pd.isna(region) else region
            for easy, chosen in (("out", group[~group["easy"]]), ("in", group)):
                sizes = {"n_patients": chosen["patient"].nunique()}
                if scope == "superpatch":
                    sizes["n_superpatches"] = len(chosen)
                elif easy == "out":
                    continue
                rows.append(row | sizes | {"easy_negatives": easy, "value": chosen["value"].mean()})
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


def attention_material() -> dict[str, Any]:
    """A superpatch of the same volume, whose right (plane stream) and head (axis stream) are looked at most."""
    d, h, w = np.meshgrid(*(np.arange(4),) * 3, indexing="ij")
    volume = material()["input"][:12, 8:20, 4:16]
    return {
        "attention_input": volume,
        "attention_plane": (0.4 + 0.4 * h).astype(np.float32),
        "attention_axis": (0.7 + 0.2 * d + 0.0 * w).astype(np.float32),
    }
