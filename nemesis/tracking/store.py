"""Where the view lies, what its runs are called, and how it is opened.

Without ``MLFLOW_TRACKING_URI`` it is a SQLite file among the results; MLflow's folder-of-files store is deprecated and refused.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from filelock import FileLock

from nemesis.errors import Fault, NemesisError
from nemesis.files import replacing
from nemesis.report.collect import flatten

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

TAG_RUN, TAG_DIGEST = "nemesis.run", "nemesis.digest"
METRICS_PER_REQUEST, PARAMETERS_PER_REQUEST = 1000, 100  # MLflow's limits
LONGEST_PARAMETER = 6000  # characters, MLflow's limit
LOCK_S = 60.0  # to wait for whoever is creating the database: four seconds of work


def experiment_name(spec: Mapping[str, Any]) -> str:
    """The MLflow experiment of a configuration; ``spec`` as :func:`nemesis.report.collect.collect` takes it."""
    return f"{spec['experiment']} {spec['config_hash']}"


def label_of(spec: Mapping[str, Any], run: str) -> str:
    """What the parts of the report that ask for a run call it, joined."""
    return joined(entry["label"] for entry in spec["runs"] if entry["run"] == run)


def joined(names: Iterable[str]) -> str:
    """Each name once, as one text; labels hold commas."""
    return "; ".join(dict.fromkeys(name for name in names if name))


def described(identity: Mapping[str, Any], label: str) -> tuple[str, dict[str, str], dict[str, str]]:
    """Title, tags and parameters of a training's MLflow run."""
    tags = {"nemesis.method": identity["method"], "nemesis.label": label, "nemesis.seed": str(identity["seed"])}
    flat = flatten(identity, "identity")
    parameters = {name.removeprefix("identity."): text[:LONGEST_PARAMETER] for name, text in flat.items()}
    return f"{label}, seed {identity['seed']}", tags, parameters


@dataclass(frozen=True)
class Store:
    """An open store: a client, the id of the experiment in it, and its address as it may be shown."""

    client: MlflowClient
    experiment: str
    address: str

    def runs(self, name: str) -> list[MlflowRun]:
        """What is logged under that name: of a training, or of the report."""
        return list(self.client.search_runs([self.experiment], filter_string=f"tags.`{TAG_RUN}` = '{name}'"))

    def log_parameters(self, run: str, parameters: Mapping[str, str]) -> None:
        """In as many requests as MLflow's limit asks for."""
        from mlflow.entities import Param

        params = [Param(name, value) for name, value in sorted(parameters.items())]
        for start in range(0, len(params), PARAMETERS_PER_REQUEST):
            self.client.log_batch(run, params=params[start : start + PARAMETERS_PER_REQUEST])

    def log_metrics(self, run: str, metrics: Sequence[tuple[str, float, int, int]]) -> None:
        """(name, value, milliseconds since 1970, step) each, in as many requests as MLflow's limit asks for."""
        from mlflow.entities import Metric

        for start in range(0, len(metrics), METRICS_PER_REQUEST):
            part = metrics[start : start + METRICS_PER_REQUEST]
            self.client.log_batch(run, metrics=[Metric(*metric) for metric in part])


def without_password(uri: str) -> str:
    """The address as it may be shown: a user name and password in it are left out."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else uri


def server() -> str:
    """The server that the user names in ``MLFLOW_TRACKING_URI``, as it may be shown; empty where there is none."""
    return without_password(_named_uri())


@contextmanager
def opened(name: str, results: Path, timeout_s: int, retries: int) -> Iterator[Store]:
    """The store, and the experiment of that name in it; both are created where they do not exist yet.

    Args:
        results: where mlflow.db and mlartifacts/ lie when ``MLFLOW_TRACKING_URI`` is not set.
        timeout_s, retries: of every request to a server, unless MLflow's own variables say otherwise.

    Raises:
        NemesisError: the store cannot be opened, or what is done inside fails for reasons of the store.
    """
    uri, artifact_root = _destination(results)
    with _quiet(timeout_s, retries), _explained(uri):
        from mlflow import MlflowClient

        _create_database(uri)
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        yield Store(client, _experiment(client, name, artifact_root), without_password(uri))


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
def _quiet(timeout_s: int, retries: int) -> Iterator[None]:
    """No telemetry, no notices of migrations; a server that is down is given up after seconds instead of minutes."""
    settings = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(retries),
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(timeout_s),
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "GIT_PYTHON_REFRESH": "quiet",
    }
    ours = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(ours)
    for noisy in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError, OSError, ImportError) as error:  # a driver may be missing
        first = (str(error).splitlines() or [type(error).__name__])[0].replace(uri, without_password(uri))
        raise NemesisError(
            Fault(
                f"MLflow at {without_password(uri)}",
                f"could not be written ({first[:200]})",
                "Nothing is lost: tables, figures and page are files. Start the server, mend MLFLOW_TRACKING_URI or unset it "
                "(SQLite among the results is used then), and give the same command again: only the tracking is repeated.",
            )
        ) from None


def _create_database(uri: str) -> None:
    """A SQLite store's file with its tables, made once and whole: processes that made them together would spoil them."""
    from mlflow import MlflowClient
    from sqlalchemy.engine import make_url

    url = make_url(uri) if uri.startswith("sqlite:") else None
    if url is None or not url.database:
        return
    path = Path(url.database)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock", timeout=LOCK_S):
        if path.exists():
            return
        for unfinished in path.parent.glob(f".{path.name}.*"):  # by a process that was killed while it wrote
            unfinished.unlink()
        with replacing(path) as fresh:
            MlflowClient(tracking_uri=f"sqlite:///{fresh.resolve()}").search_experiments(max_results=1)


def _experiment(client: MlflowClient, name: str, artifact_root: str | None) -> str:
    from mlflow.exceptions import MlflowException

    known = client.get_experiment_by_name(name)
    if known is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifact_root))
        except MlflowException:  # another process was faster, or the store refuses
            known = client.get_experiment_by_name(name)
            if known is None:
                raise
    if known.lifecycle_stage == "deleted":
        client.restore_experiment(known.experiment_id)
    return str(known.experiment_id)
