"""From raw scans to the store: every case is read, checked, prepared and stored, or its verdict says what is wrong with it.

Ingestion never raises on a bad scan. Each case leaves a small record beside its volumes, so that an interrupted ingestion goes on
where it was, and a case that has not changed is not read again; the verdicts are written when every case has one. What depends on
the window, the floor or the superpatch is told of the stored volume: another one of these reads no raw scan.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemesis.config import Preparation
from nemesis.data import VERSION
from nemesis.data.anatomy import suspicions, unknown_numbers
from nemesis.data.cases import Case, read_manifest
from nemesis.data.labels import read_case
from nemesis.data.measure import content_hash, emptiness, intensities, label_voxels, unpacked
from nemesis.data.readers import SMALLEST, Volume, resample
from nemesis.data.signature import signature
from nemesis.data.store import StoredVolume, write_volume
from nemesis.data.views import Spacing, view_name
from nemesis.datasets import Dataset, PhantomCohort
from nemesis.errors import Fault, NemesisError
from nemesis.files import digest, replacing, write_bytes, write_text
from nemesis.workers import each

log = logging.getLogger(__name__)
ABANDONED = 24 * 3600.0  # s since anything was written to a volume that is not finished
KILLED = "reading it killed its process, even alone: it is larger than the memory that is left, or crashes its decoder"
Prepared = tuple[Volume, NDArray[Any] | None, list[str]]  # scan, label map, organs that were drawn


@dataclass(frozen=True)
class _Task:
    """Everything that the verdict of one case depends on, and where to put it."""

    dataset: Dataset
    label_numbers: dict[str, int]
    case: Case
    root: Path | None
    volumes: Path
    preparation: Preparation
    superpatch: int
    largest: int
    view: Spacing | None

    @property
    def stem(self) -> str:
        """Name of the case's files in the store."""
        return self.case.stem + (view_name(self.view) if self.view else "")

    @property
    def identity(self) -> str:
        """Stays the same as long as reading the case again would give the same volumes."""
        parts = [VERSION, asdict(self.case), self.label_numbers, self.preparation.spacing_mm, self.view]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @property
    def rule(self) -> str:
        """Names the rule of what is empty."""
        return digest([self.preparation.hu_window, self.preparation.foreground_floor])

    @property
    def where(self) -> str:
        """The raw scan, for people."""
        return self.case.name if self.root is None else str(self.root / self.case.image)

    @property
    def label_where(self) -> str:
        """The raw label map, for people."""
        return self.where if self.root is None or self.case.label is None else str(self.root / self.case.label)

    def file(self, kind: str) -> Path:
        """A file of the case in the store."""
        return self.volumes / f"{self.stem}.{kind}"

    def record(self) -> dict[str, Any] | None:
        """What an earlier run wrote of the case, if that has not changed and its files are there."""
        try:
            record: dict[str, Any] = json.loads(self.file("json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if not isinstance(record, dict) or record.get("identity") != self.identity:
            return None
        kinds = ["hu.b2nd"] if self.view else ["hu.b2nd", "signature.npy"]
        if self.case.kind != "none":
            kinds.append("labels.b2nd")
        return record if record["faults"] or all(self.file(kind).is_file() for kind in kinds) else None

    def judged(self, record: dict[str, Any]) -> bool:
        """Whether a record says all that the verdict holds."""
        empty = record["empty"].get(self.rule, {"foreground": {}, "brightest": {}})
        known = str(self.superpatch) in empty["foreground"] and str(self.largest) in empty["brightest"]
        return bool(record["faults"]) or known


def ingest(
    manifest_path: Path,
    root: Path | None,
    volumes: Path,
    verdicts_path: Path,
    preparation: Preparation,
    superpatch: int,
    workers: int,
    largest: int | None = None,
    view: Spacing | None = None,
) -> None:
    """Read, check, prepare and store every case of a manifest in the folder ``volumes``; write the verdicts.

    Beside the verdicts, under the same name ending in `.maps`, lie the foreground maps of the good cases
    (:meth:`nemesis.data.foreground.BlockSums.map`), one after another in the verdicts' order. Cases that an earlier, perhaps
    interrupted, run has dealt with are not read again. The result does not depend on ``workers``.

    Args:
        manifest_path: the cases (:func:`nemesis.data.cases.write_manifest`).
        root: folder of the raw scans; None for phantoms.
        volumes: folder in the store.
        verdicts_path: what is written.
        preparation: section of the configuration.
        superpatch: edge in voxels of the superpatches of evaluation.
        workers: processes; a case that kills its process gets a verdict that says so. 0 does all in this one.
        largest: largest edge that anything is trained on, None: ``superpatch``; a scan of which no crop of that edge reaches the
            foreground floor is refused.
        view: voxel size (D, H, W) in mm: in place of the raw scans, those in the store are read and resampled to it.

    Raises:
        NemesisError: the folder cannot be written. A bad scan raises nothing.
    """
    manifest = read_manifest(manifest_path)
    common = (root, volumes, preparation, superpatch, largest or superpatch, view)
    tasks = [_Task(manifest.dataset, manifest.label_numbers, case, *common) for case in manifest.cases]
    records = {task.case.case: task.record() for task in tasks}
    unread = [task for task in tasks if records[task.case.case] is None]
    todo = [task for task in tasks if (record := records[task.case.case]) is None or not task.judged(record)]
    log.info("%s: %d cases, %d to be read", manifest.dataset.name, len(tasks), len(unread))
    try:
        if unread:
            _clear(volumes)
        for n, (task, record) in enumerate(each(_ingest_case, todo, workers), 1):
            records[task.case.case] = found = record or _failed(task, KILLED)
            log.info("%d/%d %s: %s", n, len(todo), task.case.case, "refused" if found["faults"] else "ok")
        _write_verdicts(((task, record) for task in tasks if (record := records[task.case.case])), volumes, verdicts_path)
    except OSError as error:
        what = f"cannot be written ({error.strerror or error})"
        raise NemesisError(Fault(str(volumes), what, "Make room there and run again: what is done is kept.")) from None


def _clear(volumes: Path) -> None:
    """Remove volumes that killed processes left half written, but none that another ingestion may be writing now."""
    if volumes.is_dir():
        for file in volumes.glob(".*.b2nd.*"):
            with contextlib.suppress(FileNotFoundError):  # another ingestion clears up, too
                if file.stat().st_mtime < time.time() - ABANDONED:
                    file.unlink()


def _write_verdicts(records: Iterable[tuple[_Task, dict[str, Any]]], volumes: Path, path: Path) -> None:
    cases = []
    with replacing(path.with_suffix(".maps")) as temporary, temporary.open("wb") as maps:
        for task, record in records:
            cases.append(_verdict(task, record))
            if cases[-1]["ok"]:
                maps.write(unpacked(record["empty"][task.rule]["map"]))
    content = {"volumes": Path(os.path.relpath(volumes, path.parent)).as_posix(), "cases": cases}
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _verdict(task: _Task, record: dict[str, Any]) -> dict[str, Any]:
    """What is told of a case: its scan as stored, or what is wrong with it."""
    case, preparation = task.case, task.preparation
    verdict: dict[str, Any] = {"dataset": case.dataset, "case": case.case, "patient": case.patient}
    verdict |= {"kind": case.kind, "stem": task.stem}
    verdict |= {"fingerprint": case.fingerprint, "label_fingerprint": case.label_fingerprint}
    verdict |= {"faults": record["faults"], **record["volume"]}
    if not record["faults"]:
        empty = record["empty"][task.rule]
        verdict |= {"hu_window": list(preparation.hu_window), "foreground": empty["foreground"][str(task.superpatch)]}
        share = empty["brightest"][str(task.largest)]
        if share < preparation.foreground_floor:
            what = f"is empty: even its brightest superpatch of {task.largest} voxels has a mean of {share:.3f} after windowing"
            remedy = f"Look at the scan: is it HU, and of a body? The foreground floor is {preparation.foreground_floor}."
            verdict["faults"] = [asdict(Fault(task.where, what, remedy))]
    return verdict | {"ok": not verdict["faults"]}


def _failed(task: _Task, what: str) -> dict[str, Any]:
    """The record of a case of which nothing can be known; it is not kept, so that the next run tries again."""
    remedy = "Make more memory free and run again with --forcerun ingest_scans."
    return {"faults": [asdict(Fault(task.where, what, remedy, passing=True))], "volume": {}, "empty": {}}


def _ingest_case(task: _Task) -> dict[str, Any]:
    """The record of a case, which is kept in the store beside its volumes; where a fault may pass, the next run tries again."""
    try:
        record = _record(task)
    except MemoryError:
        return _failed(task, "does not fit into the memory that is left")
    passing = [fault for fault in record["faults"] if fault["passing"]]
    for fault in passing:
        if "--forcerun" not in fault["remedy"]:
            fault["remedy"] += f" Then run again with --forcerun {'resample' if task.view else 'ingest'}_scans."
    if not passing:
        write_text(task.file("json"), json.dumps(record, ensure_ascii=False))
    return record


def _record(task: _Task) -> dict[str, Any]:
    record, hu = task.record(), None
    if record is not None and not task.judged(record):
        try:
            hu = StoredVolume(task.file("hu.b2nd"), record["volume"]["shape"]).whole()
        except NemesisError as error:  # no longer what was stored there: it is made again
            log.warning("%s %s: it is made again", error.faults[0].where, error.faults[0].what)
            record = None
    if record is None:
        record = {"identity": task.identity, "faults": [], "volume": {}, "empty": {}}
        try:
            volume, record["volume"] = _store(task)
            hu = volume.hu
        except NemesisError as error:
            record["faults"] = [asdict(fault) for fault in error.faults]
    if not task.judged(record):
        assert hu is not None
        window, floor = task.preparation.hu_window, task.preparation.foreground_floor
        known = record["empty"].get(task.rule, {"foreground": {}, "brightest": {}})
        found = emptiness(hu, window, floor, [task.superpatch], [task.largest])
        record["empty"][task.rule] = {
            "map": found["map"], **{name: {**known[name], **found[name]} for name in ("foreground", "brightest")},
        }  # fmt: skip
    return record


def _store(task: _Task) -> tuple[Volume, dict[str, Any]]:
    """Read and prepare a case and put it into the store; the scan, and what its record says of it.

    Raises:
        NemesisError: with all that is wrong with scan and label map.
    """
    source = _stored if task.view else _phantom if isinstance(task.dataset, PhantomCohort) else _files
    volume, labels, annotated = source(task)
    own_spacing = [float(s) for s in volume.spacing]
    spacing = task.view or task.preparation.spacing_mm
    if spacing is not None:
        volume, labels = resample(volume, labels, spacing)
    if min(volume.hu.shape) < SMALLEST:
        what = f"is too small after resampling ({'×'.join(map(str, volume.hu.shape))} voxels)"
        raise NemesisError(Fault(task.where, what, "Choose a smaller `spacing_mm`."))
    found = {
        "shape": list(volume.hu.shape),
        "spacing": [float(s) for s in volume.spacing],
        "own_spacing": own_spacing,
        "affine": [float(x) for x in volume.affine.ravel()],
        **intensities(volume.hu),
        "content_hash": content_hash(volume.hu),
        "annotated": annotated,
        "notes": list(volume.notes),
        "suspicions": [],
    }
    if labels is not None:
        counts = label_voxels(labels)
        found["notes"] += unknown_numbers(counts, task.label_numbers)
        if not task.view:  # of which the same would be said again
            against = suspicions(task.label_where, labels, volume.hu, volume.spacing, task.label_numbers)
            found["suspicions"] = [asdict(fault) for fault in against]
        found["voxels"] = {organ: int(counts[n]) if n < len(counts) else 0 for organ, n in task.label_numbers.items()}
        write_volume(task.volumes, f"{task.stem}.labels", labels)
    if not task.view:
        buffer = io.BytesIO()
        np.save(buffer, signature(volume.hu, volume.spacing))
        write_bytes(task.file("signature.npy"), buffer.getvalue())
    write_volume(task.volumes, f"{task.stem}.hu", volume.hu)
    return volume, found


def _phantom(task: _Task) -> Prepared:
    from nemesis.data.phantom import make_subject

    cohort = task.dataset
    assert isinstance(cohort, PhantomCohort)
    subject = make_subject(cohort.seed, int(task.case.image), cohort.base_spacing_mm)
    annotated = [organ for organ, number in task.label_numbers.items() if number in subject.annotated]
    return Volume(subject.hu, subject.spacing, subject.affine), subject.labels, annotated


def _stored(task: _Task) -> Prepared:
    """The scan as it is in the store."""
    base = replace(task, view=None)
    record = base.record()
    if record is None or record["faults"]:
        what = "is not in the store, of which a view was to be made"
        raise NemesisError(Fault(task.where, what, "Run the workflow again from its data rules.", passing=True))
    volume = record["volume"]
    affine = np.array(volume["affine"], np.float64).reshape(4, 4)
    shape = volume["shape"]
    labels = None if task.case.kind == "none" else StoredVolume(base.file("labels.b2nd"), shape).whole()
    hu = StoredVolume(base.file("hu.b2nd"), shape).whole()
    return Volume(hu, tuple(volume["spacing"]), affine), labels, volume["annotated"]


def _files(task: _Task) -> Prepared:
    assert task.root is not None
    return read_case(task.dataset, task.case, task.root, task.label_numbers)
