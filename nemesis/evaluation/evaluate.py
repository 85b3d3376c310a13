"""The evaluation job of one run: encode, probe, reconstruct, in one process."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

import nemesis.data
from nemesis.config import Preparation, Probe, Reconstruction
from nemesis.data.superpatches import Scans, evaluation_superpatches
from nemesis.evaluation.features import ENCODING, features
from nemesis.evaluation.probe import probe
from nemesis.evaluation.reconstruction import reconstruct
from nemesis.evaluation.rows import write_rows
from nemesis.files import digest, file_sha256, write_bytes, write_npz, write_parquet, write_text
from nemesis.method import Method, create
from nemesis.models.checkpoint import load_weights
from nemesis.training.device import Precision, device_for, peak_memory_mib, resolve_precision, set_threads

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn


def evaluate(spec: Mapping[str, Any], device: str = "auto") -> None:
    """Judge one run's network; write rows, predictions, timing.json and reconstruction.npz (empty where it cannot).

    The files are written when all is done, each atomically; the same inputs and thread count give the same bytes
    (timing.json apart).

    Args:
        spec: ``run`` (id); ``identity`` with ``method``, ``settings`` and ``superpatch``; ``checkpoint``, ``pool`` (of
            evaluation) and ``index`` (paths); ``organs`` (names); ``label_numbers`` (dataset → organ → number);
            ``preparation``, ``probe`` and, if the method reconstructs, ``reconstruction`` (sections of the configuration);
            ``out`` (folder); ``features`` (folder of the cached features).
        device: auto (a GPU where there is one), cpu or cuda.

    Raises:
        NemesisError: a checkpoint that does not fit, fewer than 3 patients with labels, stitched cases that are not in
            the pool.
    """
    began = time.perf_counter()
    timing: dict[str, float | str] = {}
    identity, out = spec["identity"], Path(spec["out"])
    probing = Probe.model_validate(spec["probe"])
    set_threads(probing.threads)
    method = create(identity["method"], identity["settings"], identity["superpatch"])
    network = method.build()
    load_weights(network, Path(spec["checkpoint"]))
    scans = Scans(Path(spec["pool"]), Path(spec["index"]), Preparation.model_validate(spec["preparation"]))
    table = evaluation_superpatches(scans, identity["superpatch"], spec["organs"], spec["label_numbers"], probing.positive_voxels)
    print(f"{len(table)} superpatches of {len(scans)} scans, {int(table['easy'].sum())} of them empty", flush=True)
    material: dict[str, NDArray[Any]] = {}
    with device_for(device) as place:
        network = network.to(place).eval()
        precision = resolve_precision(probing.precision, place)
        encoded = _cached_features(spec, method, network, scans, table, place, precision, timing)
        start = time.perf_counter()
        predictions, rows = probe(encoded, table, spec["organs"], probing)
        timing["probe_seconds"] = time.perf_counter() - start
        if method.card.reconstructs:
            start = time.perf_counter()
            settings = Reconstruction.model_validate(spec["reconstruction"])
            found, material = reconstruct(method, network, scans, table, identity["superpatch"], settings, place, precision)
            rows += found
            timing["reconstruction_seconds"] = time.perf_counter() - start
        timing["device"] = torch.cuda.get_device_name(place) if place.type == "cuda" else "cpu"
    write_npz(out / "reconstruction.npz", material)
    write_parquet(out / "predictions.parquet", predictions)
    write_rows(out / "rows.parquet", [{"run": spec["run"]} | row for row in rows])
    timing["seconds"] = time.perf_counter() - began
    timing["peak_memory_mib"] = peak_memory_mib(place)
    write_text(out / "timing.json", json.dumps(timing, indent=1) + "\n")


def _cached_features(
    spec: Mapping[str, Any],
    method: Method[Any],
    network: nn.Module,
    scans: Scans,
    table: pd.DataFrame,
    device: torch.device,
    precision: Precision,
    timing: dict[str, float | str],
) -> NDArray[np.float32]:
    """The features (N, F), computed once for a checkpoint, a pool and whatever else decides their bits."""
    edge = spec["identity"]["superpatch"]
    key = {
        "encoding": ENCODING,
        "data": nemesis.data.VERSION,
        "checkpoint": file_sha256(Path(spec["checkpoint"])),
        "method": [method.card.name, method.card.version, method.settings.model_dump(mode="json")],
        "scans": [[case.dataset, case.case, scans.row(i)["content_hash"]] for i, case in enumerate(scans.cases)],
        "preparation": spec["preparation"],
        "superpatch": edge,
        "threads": spec["probe"]["threads"],
        "device": device.type,
        "precision": precision,
    }
    path = Path(spec["features"]) / f"{digest(key)}.npy"
    if path.exists():
        print(f"features from {path}", flush=True)
        return np.asarray(np.load(path, allow_pickle=False))
    start = time.perf_counter()
    encoded = features(method, network, scans, table, edge, device, precision)
    seconds = time.perf_counter() - start
    timing |= {"feature_seconds": seconds, "encoded_superpatches_per_second": len(encoded) / seconds}
    buffer = io.BytesIO()
    np.save(buffer, encoded)
    write_bytes(path, buffer.getvalue())
    return encoded
