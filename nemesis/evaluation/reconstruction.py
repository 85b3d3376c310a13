"""How well a network reconstructs what it was not shown: PSNR, SSIM and LPIPS, per superpatch and on stitched volumes.

Padding beyond a scan's far ends never counts. What is measured of a volume, and where, says
:func:`nemesis.evaluation.similarity.measure`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from nemesis.errors import Fault, NemesisError
from nemesis.evaluation.features import batches
from nemesis.evaluation.progress import progress
from nemesis.evaluation.similarity import Measure, Perceptual, measure
from nemesis.method import Method
from nemesis.models.keyed import Keys
from nemesis.training.device import Precision, arithmetic

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn

    from nemesis.config import Reconstruction
    from nemesis.data.scans import Scans

RECONSTRUCTIONS = pa.schema(
    [
        ("dataset", pa.dictionary(pa.int32(), pa.string())),
        ("patient", pa.dictionary(pa.int32(), pa.string())),  # dataset/patient
        ("scope", pa.dictionary(pa.int8(), pa.string())),  # superpatch, stitched
        ("superpatch", pa.int32()),  # row of the superpatch table; of a stitched volume that of its first superpatch
        ("easy", pa.bool_()),  # of a stitched volume False: it holds its empty superpatches, too
        ("input_masked", pa.bool_()),
        ("region", pa.dictionary(pa.int8(), pa.string())),
        ("metric", pa.dictionary(pa.int8(), pa.string())),
        ("value", pa.float64()),
    ]
)


class Stitched:
    """A scan put together from its superpatches: the five tensors of :func:`measure`, each (D, H, W) on the CPU."""

    def __init__(self, shape: Sequence[int], superpatches: int) -> None:
        self.truth, self.predicted, self.filled, self.unmasked = (torch.zeros(tuple(shape)) for _ in range(4))
        self.hidden = torch.zeros(tuple(shape), dtype=torch.bool)
        self.missing = superpatches

    def put(self, start: Sequence[int], parts: Mapping[str, Tensor]) -> None:
        """Put the part of a superpatch that lies inside the scan at its place; ``parts`` are named as the tensors are."""
        box = tuple(slice(s, s + n) for s, n in zip(start, parts["truth"].shape, strict=True))
        for name, part in parts.items():
            getattr(self, name)[box] = part
        self.missing -= 1

    def measure(self, unmasked: bool, lpips: Perceptual | None) -> dict[Measure, float]:
        """See :func:`nemesis.evaluation.similarity.measure`; a superpatch that is wholly hidden is filled with the mean of the
        scan's visible voxels."""
        self.filled.masked_fill_(self.filled.isnan(), self.truth[~self.hidden].mean())
        return measure(self.truth, self.hidden, self.predicted, self.filled, self.unmasked if unmasked else None, lpips)

    def material(self, hides: bool, spacing: Sequence[float]) -> dict[str, NDArray[Any]]:
        """What the figure is drawn from: see :func:`reconstruct`."""
        pasted = torch.where(self.hidden, self.predicted, self.truth) if hides else self.unmasked
        volumes = {"input": _bytes(self.truth), "reconstruction": _bytes(pasted), "hidden": self.hidden.numpy()}
        return volumes | {"spacing": np.asarray(spacing, np.float64)}


@torch.no_grad()
def reconstruct(
    method: Method[Any],
    network: nn.Module,
    scans: Scans,
    table: pd.DataFrame,
    edge: int,
    settings: Reconstruction,
    device: torch.device,
    precision: Precision = "32-true",
    lpips: Perceptual | None = None,
) -> tuple[list[dict[str, Any]], pa.Table, dict[str, NDArray[Any]]]:
    """Reconstruct every superpatch of ``table``, once under its fixed mask and once from the whole input.

    A superpatch's mask depends on ``settings.mask_seed`` and its row in ``table``. Of a method that hides nothing, only
    the figures of unmasked input exist; of one that hides, they do where ``settings.unmasked`` asks for them.

    Args:
        lpips: see :mod:`nemesis.evaluation.lpips`; None where its weights are not there.

    Returns:
        Rows (:mod:`nemesis.evaluation.rows`): what :func:`measure` finds, as means over superpatches, with easy negatives out
        and in, each with the number of superpatches that it is over, and as means over the stitched volumes. The
        psnr_visible_mean (hidden voxels filled with the mean of their superpatch's visible ones) is over the very superpatches
        that the psnr of region masked is over.
        The figures of every superpatch and stitched volume by itself (:data:`RECONSTRUCTIONS`), which intervals are made from.
        The figure's material: ``input`` and ``reconstruction`` (pasted; of a method that hides nothing its prediction)
        as uint8 with 255 at the window's upper end, ``hidden`` as bool, each the first stitched volume (D, H, W), and
        ``spacing`` (3,) in mm; and where the method has it :meth:`Method.attention` of its brightest superpatch
        as ``attention_<stream>``, beside that superpatch as bytes, ``attention_input``.

    Raises:
        NemesisError: ``settings.stitched`` names a case that is not in the evaluation pool; a prediction is not finite.
    """
    names = [f"{case.dataset}/{case.case}" for case in scans.cases]
    wanted = settings.volumes(names)
    volumes: dict[int, Stitched] = {}  # of the scans whose superpatches are being reconstructed
    values: dict[Measure, NDArray[np.float64]] = {}
    whole: dict[Measure, NDArray[np.float64]] = {}  # of stitched volumes, in the row of their first superpatch
    material: dict[str, NDArray[Any]] = {}
    scan, starts, extents = (
        table[columns].to_numpy() for columns in ("scan", ["start_d", "start_h", "start_w"], ["valid_d", "valid_h", "valid_w"])
    )
    counts = np.bincount(scan)
    looked_at: Tensor | None = None  # the brightest superpatch of the volume that gives the figure
    hides, both = False, True  # known from the first batch on
    for places, batch in batches(scans, table, edge):
        voxels = batch.to(device)
        with arithmetic(device, precision):
            masked = method.reconstruct(network, voxels, Keys.at(settings.mask_seed, 0, places.tolist(), device))
            hides |= bool(masked.hidden.any())
            both = settings.unmasked or not hides
            unmasked = method.reconstruct(network, voxels, None) if hides and both else masked
        if not all(bool(said.prediction.isfinite().all()) for said in (masked, unmasked)):
            what = f"reconstructs {names[int(scan[places[0]])]} as numbers that are not finite, in {precision}"
            raise NemesisError(Fault(method.card.title, what, "Set `probe.precision: 32-true`, or train it at a lower rate."))
        for number, place in enumerate(places):
            d, h, w = extents[place].tolist()
            inside = np.s_[number, 0, :d, :h, :w]
            truth, hidden = voxels[inside], masked.hidden[inside]
            parts = {"truth": truth, "hidden": hidden, "predicted": masked.prediction[inside].float()}
            parts |= {"filled": truth[~hidden].mean().expand(d, h, w), "unmasked": unmasked.prediction[inside].float()}
            found = measure(**(parts if both else parts | {"unmasked": None}), lpips=lpips)
            found[True, None, "effective_mask_ratio"] = masked.hidden[number].float().mean().item()  # padding included
            _note(values, found, place, len(table))
            if names[here := int(scan[place])] in wanted:
                if here not in volumes:
                    volumes[here] = Stitched(scans.hu(here).shape, counts[here])
                if names[here] == wanted[0] and (looked_at is None or voxels[number].mean() > looked_at.mean()):
                    looked_at = voxels[number : number + 1]
                volume = volumes[here]
                volume.put(starts[place].tolist(), parts)
                if not volume.missing:
                    first = int(np.flatnonzero(scan == here)[0])
                    _note(whole, volume.measure(both, lpips), first, len(table))
                    if names[here] == wanted[0]:
                        material = volume.material(hides, scans.row(here)["spacing"])
                    del volumes[here]
            progress("reconstructions", int(place) + 1, len(table))
    assert looked_at is not None
    with arithmetic(device, precision):
        maps = method.attention(network, looked_at)
    material |= {f"attention_{stream}": found[0].float().cpu().numpy() for stream, found in maps.items()}
    material |= {"attention_input": _bytes(looked_at[0, 0].cpu())} if maps else {}
    if not hides:
        values, whole = ({name: of_name for name, of_name in every.items() if not name[0]} for every in (values, whole))
    rows = [*_rows(values, table, "superpatch"), *_rows(whole, table, "stitched")]
    return rows, pa.concat_tables([*_each(values, table, "superpatch"), *_each(whole, table, "stitched")]), material


def _note(values: dict[Measure, NDArray[np.float64]], found: Mapping[Measure, float], place: int, n: int) -> None:
    for name, value in found.items():
        values.setdefault(name, np.full(n, np.nan))[place] = value


def no_reconstructions() -> pa.Table:
    """The table of a method that does not reconstruct."""
    return RECONSTRUCTIONS.empty_table()


def _each(values: Mapping[Measure, NDArray[np.float64]], table: pd.DataFrame, scope: str) -> Iterator[pa.Table]:
    dataset, patient, easy = table["dataset"].to_numpy(object), _patients(table), table["easy"].to_numpy(bool)
    for (input_masked, region, metric), value in values.items():
        (rows,) = np.nonzero(np.isfinite(value))
        columns = {
            "dataset": dataset[rows],
            "patient": patient[rows],
            "scope": [scope] * len(rows),
            "superpatch": rows.astype(np.int32),
            "easy": easy[rows] & (scope == "superpatch"),
            "input_masked": np.full(len(rows), input_masked),
            "region": [region] * len(rows),
            "metric": [metric] * len(rows),
            "value": value[rows],
        }
        yield pa.table({name: pa.array(column, RECONSTRUCTIONS.field(name).type) for name, column in columns.items()})


def _patients(table: pd.DataFrame) -> NDArray[np.object_]:
    return np.asarray(table["dataset"].to_numpy(object) + "/" + table["patient"].to_numpy(object))


def _rows(values: Mapping[Measure, NDArray[np.float64]], table: pd.DataFrame, scope: str) -> Iterator[dict[str, Any]]:
    dataset, patient, easy = table["dataset"].to_numpy(object), _patients(table), table["easy"].to_numpy(bool)
    counted = {"out": ~easy, "in": np.ones(len(table), bool)}
    if scope == "stitched":  # a stitched volume holds its empty superpatches, too
        counted.pop("out")
    for measured, value in values.items():
        for name, here in _datasets(dataset):
            for easy_negatives, those in counted.items():
                rows = here & those & np.isfinite(value)
                if rows.any():
                    place = {"dataset": name, "scope": scope, "easy_negatives": easy_negatives}
                    sizes = {"n_patients": len(set(patient[rows]))}
                    sizes |= {"n_superpatches": int(rows.sum())} if scope == "superpatch" else {}
                    yield _row(measured, float(value[rows].mean())) | place | sizes


def _datasets(dataset: NDArray[np.object_]) -> list[tuple[str, NDArray[np.bool_]]]:
    """Every dataset by itself and, where there are several, all together under their joined names; with its members."""
    names = sorted(set(dataset))
    together = [("+".join(names), np.ones(len(dataset), bool))] if len(names) > 1 else []
    return together + [(name, dataset == name) for name in names]


def _row(measured: Measure, value: float) -> dict[str, Any]:
    input_masked, region, metric = measured
    unit = "dB" if metric.startswith("psnr") else None
    return {"input_masked": input_masked, "region": region, "metric": metric, "unit": unit, "value": value}


def _bytes(volume: Tensor) -> NDArray[np.uint8]:
    return (volume.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
