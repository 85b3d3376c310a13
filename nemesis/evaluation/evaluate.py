"""The evaluation job of one run: encode, probe, reconstruct, in one process."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

import nemesis.data
from nemesis.config import Preparation, Probe, Reconstruction
from nemesis.data.samples import Labelling
from nemesis.data.scans import Scans
from nemesis.data.superpatches import evaluation_superpatches
from nemesis.errors import Fault, NemesisError
from nemesis.evaluation import RELEASED_HEAD
from nemesis.evaluation.cost import cost_rows
from nemesis.evaluation.features import ENCODING, features
from nemesis.evaluation.lpips import Lpips
from nemesis.evaluation.peeking import peek
from nemesis.evaluation.pretext import SEED, pretext_rows
from nemesis.evaluation.probe import probe
from nemesis.evaluation.reconstruction import no_reconstructions, reconstruct
from nemesis.evaluation.rows import write_rows
from nemesis.evaluation.similarity import Perceptual
from nemesis.files import digest, file_sha256, write_bytes, write_npz, write_parquet, write_text
from nemesis.method import Method, create
from nemesis.models.checkpoint import load_weights
from nemesis.training.crops import Crops
from nemesis.training.device import Precision, device_for, peak_memory_mib, resolve_precision, set_threads

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn


@dataclass(frozen=True)
class _Bench:
    """A frozen network on its device, and the superpatches that it is judged by."""

    method: Method[Any]
    network: nn.Module
    scans: Scans
    view: Scans | None  # the same at the method's own voxel size, where it has one
    table: pd.DataFrame
    probing: Probe
    device: torch.device
    precision: Precision


def evaluate(spec: Mapping[str, Any], device: str = "auto") -> None:
    """Judge one run's network; write rows, predictions, reconstructions (of every superpatch, and one volume: empty where
    it cannot) and timing.json.

    The files are written when all is done, each atomically; the same inputs and thread count give the same bytes
    (timing.json apart).

    Args:
        spec: ``run`` (id); ``identity`` with ``method``, ``settings`` and ``superpatch``; ``checkpoint``, ``pool`` (of
            evaluation), ``index`` and, of a method with a voxel size of its own, ``view`` (paths); ``organs`` (names);
            ``label_numbers`` (dataset → organ → number);
            ``preparation``, ``probe`` and, if its reconstructions are judged, ``reconstruction`` (sections of the configuration);
            with ``lpips`` (``network``, ``weights`` and ``sha256``), if LPIPS is measured;
            ``pretext`` (true), if what its pretext asks for is measured on the evaluation pool, too;
            ``out`` (folder); ``features`` (folder of the cached features).
        device: auto (a GPU where there is one), cpu or cuda.

    Raises:
        NemesisError: a checkpoint that does not fit, fewer than 3 patients with labels, stitched cases that are not in
            the pool.
    """
    began = time.perf_counter()
    timing: dict[str, float | str] = {}
    out = Path(spec["out"])
    material: dict[str, NDArray[Any]] = {}
    reconstructions = no_reconstructions()
    with _bench(spec, device) as bench:
        method, place = bench.method, bench.device
        encoded = _cached_features(spec, bench, timing)
        start = time.perf_counter()
        predictions, rows = probe(encoded, bench.table, spec["organs"], bench.probing)
        if RELEASED_HEAD in bench.probing.protocols:
            peeked, more = peek(encoded, bench.table, spec["organs"], bench.probing)
            predictions, rows = pa.concat_tables([predictions, peeked]).unify_dictionaries().combine_chunks(), rows + more
        timing["probe_seconds"] = time.perf_counter() - start
        if "reconstruction" in spec:
            start = time.perf_counter()
            settings = Reconstruction.model_validate(spec["reconstruction"])
            found, reconstructions, material = reconstruct(
                method, bench.network, bench.scans, bench.table, method.superpatch, settings, place, bench.precision,
                _perceptual(spec["lpips"], place) if "lpips" in spec else None,
            )  # fmt: skip
            rows += found
            timing["reconstruction_seconds"] = time.perf_counter() - start
        if "pretext" in spec:
            start = time.perf_counter()
            rows += _pretext_rows(spec, bench)
            timing["pretext_seconds"] = time.perf_counter() - start
        timing["device"] = torch.cuda.get_device_name(place) if place.type == "cuda" else "cpu"
    rows += cost_rows(method)
    write_npz(out / "reconstruction.npz", material)
    write_parquet(out / "reconstructions.parquet", reconstructions)
    write_parquet(out / "predictions.parquet", predictions)
    write_rows(out / "rows.parquet", [{"run": spec["run"]} | row for row in rows])
    timing["seconds"] = time.perf_counter() - began
    timing["peak_memory_mib"] = peak_memory_mib(place)
    write_text(out / "timing.json", json.dumps(timing, indent=1) + "\n")


def validation_auroc(spec: Mapping[str, Any], device: str = "auto", weights: Mapping[str, Tensor] | None = None) -> float:
    """What a search may look at: the mean over folds and organs of the linear probe's AUROC in inner validation, which sees no
    superpatch of a fold's test patients.

    Args:
        spec: as for :func:`evaluate`.
        device: auto, cpu or cuda.
        weights: the network's, of a training that is not finished; None takes the checkpoint's.

    Raises:
        NemesisError: a checkpoint that does not fit, or too few labels to validate by.
    """
    with _bench(spec, device, weights) as bench:
        encoded = _cached_features(spec, bench, {}) if weights is None else _features(bench)
        _, rows = probe(encoded, bench.table, spec["organs"], bench.probing)
    values = [row["value"] for row in rows if row["metric"] == "validation_auroc" and row["protocol"] == "linear"]
    if not values:
        what = "in no fold has an organ labels enough to be validated on training patients"
        raise NemesisError(Fault("sweep.search", what, "Add labelled patients to the evaluation pool, or leave `search` out."))
    return float(np.mean(values))


@contextmanager
def _bench(spec: Mapping[str, Any], device: str, weights: Mapping[str, Tensor] | None = None) -> Iterator[_Bench]:
    identity, probing = spec["identity"], Probe.model_validate(spec["probe"])
    set_threads(probing.threads)
    method = create(identity["method"], identity["settings"], identity["superpatch"])
    network = method.build()
    if weights is None:
        load_weights(network, Path(spec["checkpoint"]))
    else:
        network.load_state_dict(weights)
    preparation = Preparation.model_validate(spec["preparation"])
    scans = Scans(Path(spec["pool"]), Path(spec["index"]), preparation)
    view = Scans(Path(spec["pool"]), Path(spec["view"]), preparation) if "view" in spec else None
    table = evaluation_superpatches(scans, method.superpatch, spec["organs"], spec["label_numbers"], probing.positive_voxels)
    print(f"{len(table)} superpatches of {len(scans)} scans, {int(table['easy'].sum())} of them empty", flush=True)
    with device_for(device) as place:
        precision = resolve_precision(probing.precision, place)
        yield _Bench(method, network.to(place).eval(), scans, view, table, probing, place, precision)


def _perceptual(told: Mapping[str, Any], device: torch.device) -> Perceptual:
    """LPIPS by the weights that were planned with.

    Raises:
        NemesisError: they are not there any more, or another file is.
    """
    path = Path(told["weights"])
    if not path.is_file() or file_sha256(path) != told["sha256"]:
        raise NemesisError(Fault(str(path), "is not the file that this was planned with", "Put it back, or plan again."))
    return Lpips(told["network"]).load(path).to(device).of_volumes


def _pretext_rows(spec: Mapping[str, Any], bench: _Bench) -> list[dict[str, Any]]:
    """See :mod:`nemesis.evaluation.pretext`."""
    identity, method, scans = spec["identity"], bench.method, bench.view or bench.scans
    labelling = Labelling(scans, identity["settings"]["classes"], spec["label_numbers"]) if method.card.uses_labels else None
    samples = Crops(scans, method.draw(), SEED, "scan", labelling)
    torch.manual_seed(identity["seed"])
    untrained = method.build().to(bench.device).eval()
    batch_size = identity["pretraining"]["batch_size"]
    return pretext_rows(method, bench.network, untrained, samples, batch_size, bench.device, bench.precision)


def _cached_features(spec: Mapping[str, Any], bench: _Bench, timing: dict[str, float | str]) -> NDArray[np.float32]:
    """The features (N, F), computed once for a checkpoint, a pool and whatever else decides their bits; how fast that was stays
    beside them, for whoever reads them."""
    method, scans = bench.method, bench.scans
    key = {
        "encoding": ENCODING,
        "data": nemesis.data.VERSION,
        "checkpoint": file_sha256(Path(spec["checkpoint"])),
        "method": [method.card.name, method.card.version, method.settings.model_dump(mode="json")],
        "scans": [[case.dataset, case.case, scans.row(i)["content_hash"]] for i, case in enumerate(scans.cases)],
        **({"view": [bench.view.row(i)["content_hash"] for i in range(len(bench.view))]} if bench.view else {}),
        "preparation": spec["preparation"],
        "superpatch": method.superpatch,
        "threads": bench.probing.threads,
        "device": bench.device.type,
        "precision": bench.precision,
    }
    path = Path(spec["features"]) / f"{digest(key)}.npy"
    clock = path.with_suffix(".json")
    if path.exists():
        print(f"features from {path}", flush=True)
        if clock.is_file():
            timing |= json.loads(clock.read_text(encoding="utf-8"))
        return np.asarray(np.load(path, allow_pickle=False))
    start = time.perf_counter()
    encoded = _features(bench)
    seconds = time.perf_counter() - start
    speed = {"feature_seconds": seconds, "encoded_superpatches_per_second": len(encoded) / seconds}
    timing |= speed
    write_text(clock, json.dumps(speed) + "\n")
    buffer = io.BytesIO()
    np.save(buffer, encoded)
    write_bytes(path, buffer.getvalue())
    return encoded


def _features(bench: _Bench) -> NDArray[np.float32]:
    b = bench
    return features(b.method, b.network, b.scans, b.table, b.method.superpatch, b.device, b.precision, b.view)
