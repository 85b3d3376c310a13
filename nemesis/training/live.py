"""The curve of a training as others may watch it in MLflow, at no risk to the training.

MLflow runs in a process of its own (:mod:`nemesis.tracking.live`): its import, its requests and its failures stop nothing here,
and what the pipe to it does not take waits for the next time. Whatever is not shown in the end, the report's replay brings.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

AFTER_S = 60.0  # a training that ends sooner is not shown live: to open MLflow takes seconds of the very cores that train
END_S = 5.0  # at most, for the last points
POINTS = 100  # put into the pipe at a time


class LiveCurve:
    """One run's curve in an MLflow experiment, from within the training until the context is left.

    Args:
        experiment: its name in MLflow; None: nothing is shown.
        label: what the report calls the run.
        run: the run's id.
        identity: what its weights depend on (:mod:`nemesis.runs`).
    """

    def __init__(self, experiment: str | None, label: str, run: str, identity: Mapping[str, Any]) -> None:
        self.run, self.wanted = run, experiment is not None
        self.spec = json.dumps({"experiment": experiment, "run": run, "label": label, "identity": identity})
        self.started = time.monotonic()
        self.process: subprocess.Popen[bytes] | None = None
        self.curve: Sequence[Mapping[str, float]] = ()
        self.sent, self.rest = 0, b""  # points that were turned into text; text that the pipe has not taken yet

    def __enter__(self) -> LiveCurve:
        return self

    def show(self, curve: Sequence[Mapping[str, float]]) -> None:
        """Pass on what is new in ``curve``, the points so far (``step`` and means); returns at once."""
        self.curve = curve
        if not self.wanted or time.monotonic() < self.started + AFTER_S:
            return
        try:
            self.process = self.process or self._start()
            assert self.process.stdin is not None
            while self.rest or self.sent < len(self.curve):
                self.rest = self.rest or self._text(self.curve[self.sent : self.sent + POINTS])
                self.rest = self.rest[os.write(self.process.stdin.fileno(), self.rest) :]
        except BlockingIOError:  # the pipe is full: MLflow is slower than the training
            pass
        except BrokenPipeError:  # the process has given up, and said so
            self.wanted = False
        except OSError as error:
            self.wanted = False
            print(f"{self.run}: not shown live: {error}; the report brings the curve", file=sys.stderr, flush=True)

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-W", "ignore", "-m", "nemesis.tracking.live", self.spec]
        # in a session of its own, so that Ctrl-C ends the training, which then ends it
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
        )
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        return process

    def _text(self, points: Sequence[Mapping[str, float]]) -> bytes:
        self.sent += len(points)
        return "".join(json.dumps(point) + "\n" for point in points).encode()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.process is None:
            return
        end = json.dumps({"status": "FAILED" if kind else "FINISHED"}) + "\n"
        try:
            self.process.communicate(self.rest + self._text(self.curve[self.sent :]) + end.encode(), timeout=END_S)
        except subprocess.TimeoutExpired:
            what = f"the last points did not reach MLflow within {END_S:g} s; the report brings them"
            print(f"{self.run}: {what}", file=sys.stderr, flush=True)
        finally:
            self.process.kill()
            self.process.wait()
