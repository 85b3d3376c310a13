"""Replay of a finished experiment into MLflow, as often as one likes: what is there already is not logged twice.

Files are the truth and MLflow is a view of them, so a server that is slow, down or gone costs nothing but the view.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from nemesis.files import digest, file_sha256, write_text
from nemesis.tracking import VERSION
from nemesis.tracking.store import TAG_DIGEST, TAG_RUN, Store, described, experiment_name, joined, label_of, opened

REPORT = "report"
TIMEOUT_S, RETRIES = 20, 1  # of a request: nothing else waits for the replay


def log_tracking(spec: Mapping[str, Any], collected: Path, artifacts: Mapping[str, Path], results: Path, out: Path) -> None:
    """Job: one MLflow experiment per configuration, in it one run per training and one run for the report.

    A training's run holds its identity as parameters, its curve, its timings and mean AUROCs as metrics, and as tags the parts
    of the report that ask for it and the checkpoint's path; it takes the place of what was shown live. The report's run holds
    the files of every folder in ``artifacts``. ``out`` (JSON) says what was logged where.

    Args:
        spec: see :func:`nemesis.report.collect.collect`.
        collected: folder that ``collect`` wrote.
        artifacts: name → folder whose files are logged below that name (tables, figures, notebooks, page).
        results: where mlflow.db and mlartifacts/ lie when ``MLFLOW_TRACKING_URI`` is not set.

    Raises:
        NemesisError: the tracking server does not answer, or refuses; nothing that was computed is lost.
    """
    name = experiment_name(spec)
    with opened(name, results, TIMEOUT_S, RETRIES) as store:
        logged = {run: _log_training(store, run, content) for run, content in _trainings(spec, collected)}
        logged[REPORT] = _log_report(store, spec, artifacts)
    record = {"tracking_uri": store.address, "experiment": name, "experiment_id": store.experiment, "runs": logged}
    write_text(out, json.dumps(record, indent=2, sort_keys=True) + "\n")


def _trainings(spec: Mapping[str, Any], collected: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each run once, however many parts ask for it, with what is logged of it."""
    import pandas as pd

    runs, rows, curves, timings = (pd.read_parquet(collected / f"{n}.parquet") for n in ("runs", "rows", "curves", "timings"))
    identities = dict(zip(runs["run"], runs["identity_json"], strict=True))
    for run in dict.fromkeys(entry["run"] for entry in spec["runs"]):
        entries = [entry for entry in spec["runs"] if entry["run"] == run]
        title, tags, parameters = described(json.loads(identities[run]), label_of(spec, run))
        for name in ("part", "group"):
            if text := joined(entry.get(name, "") for entry in entries):
                tags[f"nemesis.{name}"] = text
        checkpoint = Path(entries[0]["folder"]) / "checkpoint.safetensors"
        if checkpoint.is_file():
            tags |= {"nemesis.checkpoint": str(checkpoint), "nemesis.checkpoint_sha256": file_sha256(checkpoint)}
        points = curves[curves["run"] == run].sort_values(["step", "monitor"], kind="stable")
        clock = timings[(timings["run"] == run) & timings["value"].notna()]
        auroc = rows[(rows["run"] == run) & (rows["metric"] == "auroc") & (rows["easy_negatives"] == "out")]
        means = auroc.groupby(["protocol", "label_fraction"], sort=True)["value"].mean()
        metrics = [(str(m), float(v), int(s)) for s, m, v in points[["step", "monitor", "value"]].itertuples(index=False)]
        metrics += [
            (f"timing/{stage}/{name}", float(value), 0)
            for stage, name, value in clock[["stage", "name", "value"]].itertuples(index=False)
        ]
        metrics += [(f"auroc/{protocol}/{fraction:g}", float(value), 0) for (protocol, fraction), value in means.items()]
        yield run, {"title": title, "params": parameters, "metrics": metrics, "tags": tags}


def _log_training(store: Store, name: str, content: Mapping[str, Any]) -> str:
    def log(run: str, start: int) -> None:
        # Steps stand in for time: the curve's own clock was not recorded, and the replay's would be another lie.
        store.log_metrics(run, [(metric, value, start + step, step) for metric, value, step in content["metrics"]])
        store.log_parameters(run, content["params"])

    return _once(store, name, digest([VERSION, content]), content["title"], content["tags"], log)


def _log_report(store: Store, spec: Mapping[str, Any], artifacts: Mapping[str, Path]) -> str:
    files = [(f, name) for name, folder in sorted(artifacts.items()) for f in sorted(folder.iterdir()) if f.is_file()]
    files = [(f, name) for f, name in files if not f.name.startswith(".")]
    content = hashlib.sha256()
    for file, name in files:
        content.update(f"{name}/{file.name} {file_sha256(file)}\n".encode())

    def log(run: str, start: int) -> None:
        for file, name in files:
            store.client.log_artifact(run, str(file), name)

    tags = {"nemesis.config_hash": spec["config_hash"]}
    tags |= {f"nemesis.version.{name}": str(version) for name, version in sorted(spec["versions"].items())}
    return _once(store, REPORT, digest([VERSION, content.hexdigest(), tags]), "report", tags, log)


def _once(
    store: Store, name: str, content: str, title: str, tags: Mapping[str, str], log: Callable[[str, int], None]
) -> str:  # fmt: skip
    """The MLflow run that holds exactly this content: found, or written anew in place of older, live or half-written ones."""
    found = store.runs(name)
    whole = [r for r in found if r.data.tags.get(TAG_DIGEST) == content and r.info.status == "FINISHED"]
    keep = str(whole[0].info.run_id) if whole else None
    for run in found:
        if run.info.run_id != keep:
            store.client.delete_run(run.info.run_id)
    if keep is not None:
        return keep
    run = store.client.create_run(store.experiment, run_name=title, tags={TAG_RUN: name, TAG_DIGEST: content, **tags})
    log(run.info.run_id, run.info.start_time)
    store.client.set_terminated(run.info.run_id)
    return str(run.info.run_id)
