"""The other end of :class:`nemesis.training.live.LiveCurve`: a process that puts one training's points into MLflow.

``python -m nemesis.tracking.live <JSON>`` reads lines of JSON from its standard input: a point of the curve each, and at last how
the training ended. Its first failure is a sentence and its end.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nemesis.errors import NemesisError
from nemesis.tracking.store import TAG_DIGEST, TAG_RUN, Store, described, opened

EVERY_S = 1.0  # between two requests
TIMEOUT_S, RETRIES = 5, 0  # of a request: the report brings what is missed


def main() -> None:
    """Show one training; its specification holds experiment (in MLflow), run, label and identity."""
    spec = json.loads(sys.argv[1])
    try:
        with opened(spec["experiment"], Path("results"), TIMEOUT_S, RETRIES) as store:
            _show(store, spec, sys.stdin.fileno())
    except Exception as error:  # whatever it is, no log of a training shall end in a traceback that is not its own
        what = f"{type(error).__name__}: {str(error)[:200]}"
        if isinstance(error, NemesisError):
            what = f"{error.faults[0].where} {error.faults[0].what}"
        sys.exit(f"{spec['run']}: not shown live: {what}; the report brings the curve")


def _show(store: Store, spec: Mapping[str, Any], source: int) -> None:
    for older in store.runs(spec["run"]):
        if TAG_DIGEST not in older.data.tags:  # how far the same training got before it was interrupted
            store.client.delete_run(older.info.run_id)
    title, tags, parameters = described(spec["identity"], spec["label"])
    created = store.client.create_run(store.experiment, run_name=title, tags={TAG_RUN: spec["run"], **tags})
    run, status = created.info.run_id, "KILLED"
    store.log_parameters(run, parameters)
    for lines in _arriving(source):
        now = int(time.time() * 1000)
        points = [line for line in lines if "step" in line]
        status = next((str(line["status"]) for line in lines if "status" in line), status)
        store.log_metrics(run, [(n, value, now, int(p["step"])) for p in points for n, value in p.items() if n != "step"])
    store.client.set_terminated(run, status)


def _arriving(source: int) -> Iterator[list[dict[str, Any]]]:
    """The lines that came in since the last time, until the writer ends."""
    text, open_ = b"", True
    while open_:
        until = time.monotonic() + EVERY_S
        while open_ and select.select([source], [], [], max(0.0, until - time.monotonic()))[0]:
            chunk = os.read(source, 1 << 16)
            text, open_ = text + chunk, bool(chunk)
        whole, _, text = text.rpartition(b"\n")
        if whole:
            yield [json.loads(line) for line in whole.splitlines()]


if __name__ == "__main__":
    main()
