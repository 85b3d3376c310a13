"""Replay of a finished experiment into MLflow, as often as one likes: what is there already is not logged twice.

Files are the truth and MLflow is a view of them, so a server that is slow, down or gone costs nothing but the view.
Without ``MLFLOW_TRACKING_URI`` the view is a SQLite file among the results; MLflow's folder-of-files store is
deprecated and refused.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from nemesis.errors import Fault, NemesisError
from nemesis.files import digest, file_sha256, write_text

if TYPE_CHECKING:
    from mlflow import MlflowClient

VERSION = 1  # part of every digest: raise it and everything is logged again
TAG_RUN, TAG_DIGEST = "nemesis.run", "nemesis.digest"
REPORT = "report"
LONGEST_PARAMETER = 6000  # characters, MLflow's limit
BATCH = {"metrics": 1000, "params": 100}  # entries per request, MLflow's limits


def log_tracking(spec: Mapping[str, Any], collected: Path, artifacts: Mapping[str, Path], results: Path, out: Path) -> None:
    """Job: one MLflow experiment per configuration, in it one run per training and one run for the report.

    A training's run holds its identity as parameters, its curve, its timings and mean AUROCs as metrics and the
    checkpoint's path as a tag; the report's run holds the files of every folder in ``artifacts``. ``out`` (JSON) says
    what was logged where.

    Args:
        spec: see :func:`nemesis.report.collect.collect`.
        collected: folder that ``collect`` wrote.
        artifacts: name → folder whose files are logged below that name (tables, figures, page).
        results: where mlflow.db and mlartifacts/ lie when ``MLFLOW_TRACKING_URI`` is not set.

    Raises:
        NemesisError: the tracking server does not answer, or refuses; nothing that was computed is lost.
    """
    uri, artifact_root = _destination(results)
    name = f"{spec['experiment']} {spec['config_hash']}"
    with _quiet(), _explained(uri):
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        experiment = _experiment(client, name, artifact_root)
        logged = {
            entry["run"]: _log_training(client, experiment, entry, content) for entry, content in _trainings(spec, collected)
        }
        logged[REPORT] = _log_report(client, experiment, spec, artifacts)
    record = {"tracking_uri": without_password(uri), "experiment": name, "experiment_id": experiment, "runs": logged}
    write_text(out, json.dumps(record, indent=2, sort_keys=True) + "\n")


def without_password(uri: str) -> str:
    """The address as it may be shown: a user name and password in it are left out."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else uri


def server() -> str:
    """The server that the user names in ``MLFLOW_TRACKING_URI``, as it may be shown; empty where there is none."""
    return without_password(_named_uri())


def _named_uri() -> str:
    return os.environ.get("MLFLOW_TRACKING_URI", "").strip()


def _destination(results: Path) -> tuple[str, str | None]:
    uri = _named_uri()
    if not uri:
        results.mkdir(parents=True, exist_ok=True)
        return f"sqlite:///{results.resolve() / 'mlflow.db'}", (results.resolve() / "mlartifacts").as_uri()
    if urlsplit(uri).scheme in ("", "file"):
        what = "is a folder of files, which MLflow no longer keeps up"
        raise NemesisError(Fault(f"MLFLOW_TRACKING_URI={uri}", what, "Use sqlite:///<file>.db or a server, or unset it."))
    return uri, None


@contextmanager
def _quiet() -> Iterator[None]:
    """No telemetry, no notices of migrations; a server that is down is given up after seconds instead of minutes."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    for noisy in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    yield


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError, OSError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0].replace(uri, without_password(uri))
        raise NemesisError(
            Fault(
                f"MLflow at {without_password(uri)}",
                f"could not be written ({first[:200]})",
                "Nothing is lost: tables, figures and page are files. Start the server, mend MLFLOW_TRACKING_URI or "
                "unset it "
                "(SQLite among the results is used then), and give the same command again: only the tracking is "
                "repeated.",
            )
        ) from None


def _experiment(client: MlflowClient, name: str, artifact_root: str | None) -> str:
    known = client.get_experiment_by_name(name)
    if known is None:
        return str(client.create_experiment(name, artifact_location=artifact_root))
    if known.lifecycle_stage == "deleted":
        client.restore_experiment(known.experiment_id)
    return str(known.experiment_id)


def _trainings(spec: Mapping[str, Any], collected: Path) -> Iterator[tuple[Mapping[str, Any], dict[str, Any]]]:
    """Each run once, with what is logged of it."""
    import pandas as pd

    runs, rows, curves, timings = (pd.read_parquet(collected / f"{n}.parquet") for n in ("runs", "rows", "curves", "timings"))
    for entry in {e["run"]: e for e in spec["runs"]}.values():
        run, prefix = entry["run"], "identity."
        line = runs[runs["run"] == run].iloc[0]
        known = {str(column): value for column, value in line.items() if pd.notna(value)}
        parameters = {c.removeprefix(prefix): v[:LONGEST_PARAMETER] for c, v in known.items() if c.startswith(prefix)}
        points = curves[curves["run"] == run].sort_values(["step", "monitor"], kind="stable")
        clock = timings[(timings["run"] == run) & timings["value"].notna()]
        auroc = rows[(rows["run"] == run) & (rows["metric"] == "auroc") & (rows["easy_negatives"] == "out")]
        metrics = [(str(m), float(v), int(s)) for s, m, v in points[["step", "monitor", "value"]].itertuples(index=False)]
        metrics += [
            (f"timing/{r.stage}/{r.name_}", float(r.value), 0) for r in clock.rename(columns={"name": "name_"}).itertuples()
        ]
        means = auroc.groupby(["protocol", "label_fraction"], sort=True)["value"].mean()
        metrics += [(f"auroc/{protocol}/{fraction:g}", float(value), 0) for (protocol, fraction), value in means.items()]
        checkpoint = Path(entry["folder"]) / "checkpoint.safetensors"
        tags = {"nemesis.method": entry["method"], "nemesis.label": entry["label"], "nemesis.seed": str(entry["seed"])}
        if checkpoint.is_file():
            tags |= {"nemesis.checkpoint": str(checkpoint), "nemesis.checkpoint_sha256": file_sha256(checkpoint)}
        yield entry, {"params": parameters, "metrics": metrics, "tags": tags}


def _log_training(client: MlflowClient, experiment: str, entry: Mapping[str, Any], content: Mapping[str, Any]) -> str:
    from mlflow.entities import Metric, Param

    def log(run: str, start: int) -> None:
        # Steps stand in for time: the curve's own clock was not recorded, and the replay's would be another lie.
        metrics = [Metric(name, value, start + step, step) for name, value, step in content["metrics"]]
        parameters = [Param(name, value) for name, value in sorted(content["params"].items())]
        for chunk in _chunks(metrics, BATCH["metrics"]):
            client.log_batch(run, metrics=chunk)
        for chunk in _chunks(parameters, BATCH["params"]):
            client.log_batch(run, params=chunk)

    title = f"{entry['label']}, seed {entry['seed']}"
    return _once(client, experiment, entry["run"], digest([VERSION, content]), title, content["tags"], log)


def _log_report(client: MlflowClient, experiment: str, spec: Mapping[str, Any], artifacts: Mapping[str, Path]) -> str:
    files = [(f, name) for name, folder in sorted(artifacts.items()) for f in sorted(folder.iterdir()) if f.is_file()]
    files = [(f, name) for f, name in files if not f.name.startswith(".")]
    content = hashlib.sha256()
    for file, name in files:
        content.update(f"{name}/{file.name} {file_sha256(file)}\n".encode())

    def log(run: str, start: int) -> None:
        for file, name in files:
            client.log_artifact(run, str(file), name)

    tags = {"nemesis.config_hash": spec["config_hash"]}
    tags |= {f"nemesis.version.{name}": str(version) for name, version in sorted(spec["versions"].items())}
    return _once(client, experiment, REPORT, digest([VERSION, content.hexdigest(), tags]), "report", tags, log)


def _once(
    client: MlflowClient, experiment: str, name: str, content: str, title: str, tags: Mapping[str, str],
    log: Callable[[str, int], None],
) -> str:  # fmt: skip
    """The MLflow run that holds exactly this content: found, or written anew in place of older or half-written ones."""
    found = client.search_runs([experiment], filter_string=f"tags.`{TAG_RUN}` = '{name}'")
    whole = [r for r in found if r.data.tags.get(TAG_DIGEST) == content and r.info.status == "FINISHED"]
    keep = str(whole[0].info.run_id) if whole else None
    for run in found:
        if run.info.run_id != keep:
            client.delete_run(run.info.run_id)
    if keep is not None:
        return keep
    run = client.create_run(experiment, run_name=title, tags={TAG_RUN: name, TAG_DIGEST: content, **tags})
    log(run.info.run_id, run.info.start_time)
    client.set_terminated(run.info.run_id)
    return str(run.info.run_id)


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
