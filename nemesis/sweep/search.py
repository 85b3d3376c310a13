"""The adaptive sweep: worker processes that share one Optuna study, where every trial is an ordinary run of the workflow.

TPE (Bergstra et al., "Algorithms for hyper-parameter optimization", NeurIPS 2011) proposes an embedding width and a mask ratio.
A trial trains that run in its folder ``results/runs/<run>``, under its lock and with the bits of `nemesis pretrain`, and goes on
from whatever is there: a point that a table, another experiment or an earlier trial has computed costs nothing. At every rung
(a share of the steps) the state is saved and scored, and the median of the completed trials decides whether to go on; a pruned
run can be trained to its end at any time.

The score is the AUROC of the linear probe in inner validation, the mean over folds: in each, the probe is fitted and scored on
training patients alone, and no test patient of that fold is looked at. But every patient is a test patient of one fold and may
validate in all others, so those who test the best run in the end had a say in choosing it: its test figures are optimistic.

The study lies beside the job's outputs, so that the same command goes on with it. As SQLite locks no rows, a lock of our own is
held wherever a trial changes hands. A trial fails for good where its own settings spoil the training. Whatever else ends a worker
leaves the trial to the others: once no new one is to be begun, a copy of it resumes the run from its last state. A trial that has
taken :data:`ATTEMPTS` workers with it fails, too; those that were told to end, or could say what is wrong where they ran, do not
count.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Mapping
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from filelock import FileLock
from optuna.exceptions import ExperimentalWarning
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, Trial, TrialState

from nemesis.errors import Fault, NemesisError, TrainingError
from nemesis.files import digest, write_parquet, write_text
from nemesis.method import create, find
from nemesis.runs import Run, search_run
from nemesis.sweep.study import STUDY

if TYPE_CHECKING:
    from torch import Tensor

RATIO_STEP = 0.05
HEARTBEAT_S, GRACE_S = 2, 10  # between two signs of life; after the last one a trial is given to another worker
POLL_S = 0.5
BUSY_S = 60.0  # a process waits so long for the file while others write
ATTEMPTS = 3  # workers that may die of a trial before it fails for good
Attempts = list[FrozenTrial]  # at one trial: the second one copies the first, which its worker left
STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


class Search:
    """A search as each of its processes sees it.

    Args:
        spec: ``embed_dims``; ``mask_ratios``: the smallest and the largest; ``search``: that section, without workers;
            ``template``: the identity that the points vary; ``evaluate``: what :func:`nemesis.evaluation.evaluate.evaluate`
            takes but for the run's own keys; ``pool`` (of pretraining) and ``index`` (files), ``runs`` and ``out`` (folders);
            ``log`` (file): where people find what the workers said.
        device, workers, state_every: as in :func:`nemesis.training.pretrain.pretrain`.
    """

    def __init__(self, spec: Mapping[str, Any], device: str, workers: int, state_every: int) -> None:
        warnings.filterwarnings("ignore", category=ExperimentalWarning)
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # what it says of trials is said here in a line each
        self.spec, self.out = spec, Path(spec["out"])
        self.device, self.workers, self.state_every = device, workers, state_every
        self.path = self.out / f"search-{_digest(spec)}.db"
        self.lock = FileLock(self.path.with_suffix(".lock"))
        self.lost = False
        self.out.mkdir(parents=True, exist_ok=True)
        self.storage = RDBStorage(
            f"sqlite:///{self.path}",
            engine_kwargs={"connect_args": {"timeout": BUSY_S}},
            heartbeat_interval=HEARTBEAT_S,
            grace_period=GRACE_S,
        )
        pruner = optuna.pruners.MedianPruner(n_startup_trials=spec["search"]["startup"])
        self.study = optuna.create_study(
            storage=self.storage, study_name=STUDY, direction="maximize", pruner=pruner, load_if_exists=True
        )

    def trials(self) -> list[Attempts]:
        """All that were begun, those failed whose worker gives no sign of life any more. To be called under the lock."""
        optuna.storages.fail_stale_trials(self.study)
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if "run" not in trial.user_attrs:  # died before its first sign of life
                self.study.tell(trial.number, state=TrialState.FAIL)
        return by_trial(self.study.get_trials())

    def left(self, trials: list[Attempts]) -> int:
        """How many are still to end, of those that are asked for now."""
        return max(0, self.spec["search"]["trials"] - sum(map(has_ended, trials)))

    def work(self) -> None:
        """Take one trial after another, until as many as asked for have ended.

        Raises:
            NemesisError: what is wrong with the place; the trial in hand is left to other workers.
        """
        for heavy in ("nemesis.evaluation.evaluate", "nemesis.training.pretrain"):
            importlib.import_module(heavy)  # seconds, in which no trial should be anybody's
        find(self.spec["template"]["method"])
        parent = os.getppid()
        while os.getppid() == parent:  # not after the job that started this worker was killed
            with ExitStack() as taking:
                taking.enter_context(self.lock)
                trials = self.trials()
                left = self.left(trials)
                if sum(attempts[-1].state == TrialState.RUNNING for attempts in trials) < left:
                    self._offer(trials)
                    self._optimize(taking)
                    continue
            if not left:
                return
            time.sleep(POLL_S)

    def _offer(self, trials: list[Attempts]) -> None:
        """Let a copy wait of the trial that was left most seldom, but only when no other is to be begun: what ends its workers
        comes last. Optuna begins a new trial where none waits.
        """
        waits = any(attempts[-1].state == TrialState.WAITING for attempts in trials)
        if len(trials) >= self.spec["search"]["trials"] and not waits:
            was_left = [attempts for attempts in trials if attempts[-1].state == TrialState.FAIL and not has_ended(attempts)]
            last = min(was_left, key=len)[-1]
            last.user_attrs = {}  # they are copied
            RetryHeartbeatStaleTrialCallback()(self.study, last)

    def _optimize(self, taking: ExitStack) -> None:
        self.lost = False
        try:
            self.study.optimize(lambda trial: self._trial(trial, taking), n_trials=1, catch=(TrainingError,))
        except ValueError:  # Optuna will not be told of a trial that has been failed
            if not self.lost:
                raise

    def _trial(self, trial: Trial, taking: ExitStack) -> float:
        """``taking`` holds the lock: until the trial is this worker's for all to see, and again while the study is told."""
        spec = self.spec
        # a function of seed and number: a search that was interrupted repeats none of its proposals
        seed = int(digest([spec["search"]["seed"], trial.number]), 16) % 2**32
        self.study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=spec["search"]["startup"])
        trial.suggest_categorical("embed_dim", spec["embed_dims"])
        low, high = spec["mask_ratios"]
        steps = int((high - low) / RATIO_STEP + 1e-6)
        trial.suggest_float("mask_ratio", low, round(low + steps * RATIO_STEP, 6), step=RATIO_STEP)
        self.storage.record_heartbeat(trial._trial_id)
        try:
            run = self._run(trial)
            trial.set_user_attr("run", run.id)
            taking.close()
            print(f"trial {trial.number}: {run.label} ({run.id})", flush=True)
            score = self._train(trial, run)
        except TrainingError as error:
            print(f"trial {trial.number} failed: {error}", flush=True)
            trial.set_user_attr("fault", str(error))
            raise
        except (NemesisError, KeyboardInterrupt) as error:  # whoever goes on with the trial may well end it
            faults = error.faults if isinstance(error, NemesisError) else []
            trial.set_user_attr("left", [[fault.where, fault.what, fault.remedy] for fault in faults])
            raise
        finally:
            taking.enter_context(self.lock)
            if self.storage.get_trial(trial._trial_id).state != TrialState.RUNNING:
                self.lost = True
                print(f"trial {trial.number}: taken for dead, another worker goes on with it", flush=True)
                raise RuntimeError
        return score

    def _run(self, trial: Trial) -> Run:
        try:
            return search_run(self.spec["template"], *point(trial))
        except NemesisError as error:
            raise TrainingError(error.faults) from None

    def _train(self, trial: Trial, run: Run) -> float:
        """Train from rung to rung; returns the score at the end.

        Raises:
            optuna.TrialPruned: the score at a rung is behind.
            TrainingError: the training failed, or left a network that has no score.
            NemesisError: nothing can be trained or scored here.
        """
        import torch

        from nemesis.training.pretrain import at_point
        from nemesis.training.state import load_state

        folder = self.run_folder(run)
        steps = run.identity["pretraining"]["steps"]
        for rung in sorted({at_point(round(share * steps)) for share in self.spec["search"]["rungs"]}):
            if rung >= steps or (folder / "checkpoint.safetensors").exists():
                break
            score = self._told(run, rung)
            if score is None:
                self.pretrain(run, until=rung)
                state = load_state(folder / "state.pt", torch.device("cpu"))
                if state is not None and state["step"] == rung:
                    score = self._score(run, state["network"])
                else:
                    score = self._told(run, rung)  # a trial of the same point went on meanwhile
            if score is None:  # an interrupted training outside the search is beyond this rung
                continue
            self._tell(trial, score, rung, steps)
            if trial.should_prune():
                print(f"trial {trial.number}: pruned", flush=True)
                raise optuna.TrialPruned
        score = self._told(run, steps)
        if score is None:
            self.pretrain(run)
            score = self._score(run)
        self._tell(trial, score, steps, steps)
        return score

    def _score(self, run: Run, weights: Mapping[str, Tensor] | None = None) -> float:
        from nemesis.evaluation.evaluate import validation_auroc

        with redirect_stdout(None):  # the progress of many workers at once tells nobody anything
            score = validation_auroc(self.evaluation(run, self.out), self.device, weights)
        if not math.isfinite(score):
            what = f"{run.label} has no validation AUROC, but {score}"
            raise TrainingError(Fault(run.id, what, "Lower pretraining.learning_rate or use precision: 32-true"))
        return score

    def _told(self, run: Run, step: int) -> float | None:
        """The score that a trial of the same run has told at this step."""
        for trial in self.study.get_trials(deepcopy=False):
            if trial.user_attrs.get("run") == run.id and step in trial.intermediate_values:
                return trial.intermediate_values[step]
        return None

    def _tell(self, trial: Trial, score: float, step: int, steps: int) -> None:
        print(f"trial {trial.number}: validation AUROC {score:.4f} at step {step}/{steps}", flush=True)
        trial.report(score, step)

    def pretrain(self, run: Run, until: int | None = None) -> None:
        """Train a run in its folder, unless somebody has."""
        from nemesis.training.pretrain import pretrain

        pool, index = Path(self.spec["pool"]), Path(self.spec["index"])
        pretrain(run.identity, self.run_folder(run), pool, index, self.device, self.workers, self.state_every, until)

    def run_folder(self, run: Run) -> Path:
        """Where the run's state and checkpoint lie."""
        return Path(self.spec["runs"]) / run.id

    def evaluation(self, run: Run, out: Path) -> dict[str, Any]:
        """The specification of the run's evaluation."""
        folder = self.run_folder(run)
        own = {"run": run.id, "identity": run.identity, "checkpoint": str(folder / "checkpoint.safetensors")}
        return {**self.spec["evaluate"], **own, "out": str(out), "features": str(folder / "features")}


def search_sweep(spec: Mapping[str, Any], processes: int, device: str, workers: int, state_every: int) -> None:
    """Job: let worker processes end all trials, or go on where they were; write the trials and the best run.

    Trials that ended in earlier jobs count, even if fewer are asked for now.

    Writes into ``out``: ``trials.parquet`` (see :func:`trial_rows`), ``best.json`` (the best run as an entry of the report's
    ``runs``, with its ``trial``, its ``validation_auroc`` and the ``study``, a file beside it) and the folder ``best`` (the five
    files of its evaluation).

    Args:
        processes: worker processes, that is trials at the same time.
        spec, device, workers, state_every: see :class:`Search`.

    Raises:
        NemesisError: every worker has ended before the trials, or no trial was completed.
    """
    search = Search(spec, device, workers, state_every)
    with search.lock:
        before = search.trials()
    arguments = ["--device", device, "--workers", str(workers), "--state-every", str(state_every)]
    command = [sys.executable, "-m", "nemesis", "sweep", "work", json.dumps(spec), *arguments]
    started = [subprocess.Popen(command) for _ in range(min(processes, search.left(before)))]
    try:
        codes = [process.wait() for process in started]
    finally:
        for process in started:
            process.terminate()
            process.wait()
    with search.lock:
        trials = search.trials()
    if left := search.left(trials):
        what = f"{left} of {spec['search']['trials']} trials are left, and every worker has ended (exit codes {codes})"
        remedy = f"Mend what ended them ({search.spec['log']}); the same command goes on from there"
        raise NemesisError([Fault(str(search.path), what, remedy), *_faults_since(before, trials)])
    if any(codes):
        print(f"{sum(map(bool, codes))} of {len(codes)} workers ended early; what they left has ended, too", flush=True)
    _write(search, trials)


def _faults_since(before: list[Attempts], trials: list[Attempts]) -> list[Fault]:
    """What workers said when they left their trials, each fault once."""
    known = {attempt.number for attempts in before for attempt in attempts if "left" in attempt.user_attrs}
    new = [attempt for attempts in trials for attempt in attempts if attempt.number not in known]
    return list(dict.fromkeys(Fault(*told) for attempt in new for told in attempt.user_attrs.get("left", [])))


def _write(search: Search, trials: list[Attempts]) -> None:
    import pyarrow as pa

    from nemesis.evaluation.evaluate import evaluate

    rows = trial_rows(search.spec, trials)
    complete = [attempts[-1] for attempts in trials if attempts[-1].state == TrialState.COMPLETE]
    if not complete:
        faults = "; ".join(dict.fromkeys(row["fault"] for row in rows if row["fault"]))
        remedy = "Mend that, delete the file and run again"
        raise NemesisError(Fault(str(search.path), f"no trial was completed ({faults})", remedy))
    best = max(complete, key=lambda trial: (trial.value or 0.0, -trial.number))
    run = search_run(search.spec["template"], *point(best))
    out = search.out / "best"
    search.pretrain(run)  # only if its checkpoint has been deleted
    evaluate(search.evaluation(run, out), search.device)
    entry = {"run": run.id, "part": run.part, "label": run.label, **run.place, "method": run.method, "seed": run.seed}
    entry |= {"trained_on": None, "learns_labels": False}  # of NEMESIS, or a method on its network
    entry |= {"evaluation": str(out), "folder": str(search.run_folder(run))}
    entry |= {"trial": best.number, "validation_auroc": best.value, "study": search.path.name}
    write_text(search.out / "best.json", json.dumps(entry, indent=1) + "\n")
    write_parquet(search.out / "trials.parquet", pa.Table.from_pylist(rows, schema=_schema()))
    print(f"best of {len(rows)} trials: {best.number}, {run.label}, validation AUROC {best.value:.4f} ({run.id})", flush=True)
    print(f"optuna-dashboard sqlite:///{search.path} shows them", flush=True)


def by_trial(attempts: list[FrozenTrial]) -> list[Attempts]:
    """Optuna's trials, for which a further attempt is another trial, as ours: all attempts at one, in their order."""
    found: dict[int, Attempts] = {}
    for attempt in sorted(attempts, key=lambda attempt: attempt.number):
        history = RetryHeartbeatStaleTrialCallback.retry_history(attempt)
        found.setdefault(history[0] if history else attempt.number, []).append(attempt)
    return list(found.values())


def has_ended(attempts: Attempts) -> bool:
    """Complete, pruned, or failed for good: by its own settings, or since it took too many workers with it."""
    last = attempts[-1]
    failed = last.state == TrialState.FAIL and ("fault" in last.user_attrs or _deaths(attempts) >= ATTEMPTS)
    return failed or last.state in (TrialState.COMPLETE, TrialState.PRUNED)


def _deaths(attempts: Attempts) -> int:
    """How many workers ended in it without a word."""
    said = ("fault", "left")
    return sum(attempt.state == TrialState.FAIL and not any(name in attempt.user_attrs for name in said) for attempt in attempts)


def trial_rows(spec: Mapping[str, Any], trials: list[Attempts]) -> list[dict[str, Any]]:
    """A row per attempt that has ended, by number; one whose worker died before it had a proposal left nothing to tell.

    ``state`` is complete, pruned or failed; ``validation_auroc`` the last that was told, after so many ``steps`` of training;
    ``effective_mask_ratio`` the share of all tokens that is hidden; ``fault`` says why a trial failed for good. A failed attempt
    without one was left by its worker: ``retry_of`` of a later attempt is the number of the first.

    Args:
        spec: see :class:`Search`.
    """
    rows = []
    for attempts in trials:
        proposed = [attempt for attempt in attempts if attempt.state in STATES and len(attempt.params) == 2]
        for attempt in proposed:
            embed_dim, mask_ratio = point(attempt)
            fault = attempt.user_attrs.get("fault")
            if attempt is attempts[-1] and fault is None and attempt.state == TrialState.FAIL and has_ended(attempts):
                fault = str(Fault(f"trial {attempt.number}", f"its worker died {_deaths(attempts)} times", f"See {spec['log']}"))
            rows.append({
                "number": attempt.number, "state": STATES[attempt.state], "embed_dim": embed_dim, "mask_ratio": mask_ratio,
                "effective_mask_ratio": _hidden(spec["template"], embed_dim, mask_ratio),
                "run": attempt.user_attrs.get("run"), "steps": attempt.last_step,
                "validation_auroc": None if attempt.last_step is None else attempt.intermediate_values[attempt.last_step],
                "retry_of": None if attempt is proposed[0] else proposed[0].number, "fault": fault,
            })  # fmt: skip
    return sorted(rows, key=lambda row: row["number"])


def _hidden(template: Mapping[str, Any], embed_dim: int, mask_ratio: float) -> float | None:
    """Share of all tokens that is hidden at a point; None where its settings do not fit, or the method does not say it."""
    try:
        run = search_run(template, embed_dim, mask_ratio)
    except NemesisError:
        return None
    method: Any = create(run.method, run.identity["settings"], run.identity["superpatch"])
    return method.masking.hidden_share(method.architecture.grid) if hasattr(method, "masking") else None


def _schema() -> Any:
    import pyarrow as pa

    kinds = {
        "number": pa.int64(), "state": pa.string(), "embed_dim": pa.int64(), "mask_ratio": pa.float64(), "run": pa.string(),
        "effective_mask_ratio": pa.float64(), "validation_auroc": pa.float64(), "steps": pa.int64(), "retry_of": pa.int64(),
        "fault": pa.string(),
    }  # fmt: skip
    return pa.schema(list(kinds.items()))


def point(trial: Trial | FrozenTrial) -> tuple[int, float]:
    """Embedding width and mask ratio of a trial; sums of steps are rounded, so that a cell of a grid is the same run."""
    return int(trial.params["embed_dim"]), round(float(trial.params["mask_ratio"]), 6)


def _digest(spec: Mapping[str, Any]) -> str:
    """Names what proposals and scores depend on; how many trials there are to be may change on the way."""
    judged = {name: value for name, value in spec["evaluate"].items() if name not in ("index", "lpips", "reconstruction", "view")}
    search = {name: value for name, value in spec["search"].items() if name != "trials"}
    return digest([spec["embed_dims"], spec["mask_ratios"], search, spec["template"], judged, spec["version"]])
