"""Networks for people who only want the encoder: load one from any file, apply it to any scan."""

from __future__ import annotations

import gzip
import json
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nemesis.config import Preparation
from nemesis.data.foreground import extents, grid
from nemesis.data.readers import Volume, read_volume, resample, resample_onto
from nemesis.data.store import AIR, normalise, pad
from nemesis.errors import Fault, NemesisError
from nemesis.evaluation.features import batch_size
from nemesis.files import check_writable, write_bytes, write_npz, write_parquet
from nemesis.method import Method, Reconstruction, create
from nemesis.models.architecture import Size
from nemesis.models.autoencoder import MaskedAutoencoder
from nemesis.models.checkpoint import from_pretrained, load_weights
from nemesis.models.keyed import Keys
from nemesis.models.mae import MAEgic3DMAE
from nemesis.models.masking import keyed_mask, nothing_masked
from nemesis.models.released import Told, load_released
from nemesis.training.device import Precision, arithmetic, device_for, resolve_precision

if TYPE_CHECKING:
    import pyarrow

log = logging.getLogger(__name__)

WantedPrecision = Precision | Literal["auto"]


def load(path: Path | str, **told: Unpack[Told]) -> MAEgic3DMAE:
    """A NEMESIS network, in evaluation mode on the CPU: ``nemesis.load("MAE_768_0.5.pt")``.

    Args:
        path: a released checkpoint (.pt); a run's folder (``results/runs/<run>``); a folder of ``save_pretrained``; a repository
            of the Hugging Face Hub (``owner/name``).
        told: of a released checkpoint what its tensors do not say, where it is not as released:
            ``superpatch_size`` 128, ``patch_size`` (square in the plane), ``num_heads`` and ``decoder_num_heads`` 8,
            ``in_channels`` 1, ``spatial_mask_ratio`` and ``depth_mask_ratio`` (those of its name, else 0.5), ``dropout`` 0.1.

    Raises:
        NemesisError: no such file, or it is truncated, is something else, or carries code (which is never run).
    """
    path = Path(path)
    run, card = _run_folder(path), path.parent if path.name == "model.safetensors" else path
    of_hub = path.suffix not in (".pt", ".pth", ".ckpt", ".safetensors") and len(path.parts) == 2 and not path.exists()
    described = run or (card / "card.json").is_file() or of_hub
    if described:
        _refuse_told(path, told)
    if run:
        _, network, preparation = _load_run(run)
        if not isinstance(network, MaskedAutoencoder):
            what = f"is a run of another method ({type(network).__name__}), not of NEMESIS"
            raise NemesisError(Fault(str(path), what, "`nemesis embed` takes the runs of every method."))
        model = MAEgic3DMAE.of(network.architecture, network.encoder.masking)
        model.load_state_dict(network.state_dict())
        model.preparation = preparation
        return model.eval()
    if described or path.is_dir():
        return from_pretrained(card)
    return load_released(path, **told)


def _refuse_told(path: Path, told: Told) -> None:
    if names := [name for name, value in told.items() if value is not None]:
        what = f"says itself what it is; {', '.join(names)} can be told of released checkpoints only"
        raise NemesisError(Fault(str(path), what, "Leave it out."))


def _run_folder(path: Path) -> Path | None:
    folder = path.parent if path.name == "checkpoint.safetensors" else path
    return folder if (folder / "run.json").is_file() else None


def _load_run(folder: Path) -> tuple[Method[Any], nn.Module, Preparation]:
    path = folder / "run.json"
    try:
        identity = json.loads(path.read_text(encoding="utf-8"))
        method = create(identity["method"], identity["settings"], identity["superpatch"], str(path))
        seen = {name: identity[name] for name in ("spacing_mm",) if name in identity}
        preparation = Preparation.model_validate({**(identity["preparation"] or {}), **seen})  # a control was not trained on any
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NemesisError(Fault(str(path), f"does not describe a run ({error})", "Train it again.")) from None
    network = method.build()
    load_weights(network, folder / "checkpoint.safetensors")
    return method, network.eval(), preparation


@dataclass
class Applied:
    """A network with what it needs to be applied to a scan."""

    network: Any
    superpatch: Size  # voxels (D, H, W)
    preparation: Preparation
    method: Method[Any] | None  # of a run; None: ``network`` is a MAEgic3DMAE

    @classmethod
    def load(cls, path: Path, **told: Unpack[Told]) -> Applied:
        """See :func:`load`; a run's folder may be of any method."""
        run = _run_folder(path)
        if run is None:
            model = load(path, **told)
            return cls(model, model.architecture.superpatch, model.preparation, None)
        _refuse_told(path, told)
        method, network, preparation = _load_run(run)
        return cls(network, (method.superpatch,) * 3, preparation, method)

    def encode(self, voxels: Tensor) -> Tensor:
        """Superpatches (B, 1, D, H, W) in [0, 1] → vectors (B, F)."""
        return self.method.encode(self.network, voxels) if self.method else self.network.encoder.embed(voxels)

    def reconstruct(self, voxels: Tensor, keys: Keys | None) -> Reconstruction:
        """See :meth:`nemesis.method.Method.reconstruct`."""
        if self.method:
            return self.method.reconstruct(self.network, voxels, keys)
        encoder = self.network.encoder
        if keys is None:
            mask = nothing_masked(encoder.grid, len(voxels), voxels.device)
        else:
            mask = keyed_mask(encoder.grid, encoder.masking, keys)
        return Reconstruction(*self.network.reconstruct(voxels, mask))


def embed(
    scan: Path, weights: Path, out: Path, device: str = "auto", precision: WantedPrecision = "32-true", **told: Unpack[Told]
) -> int:
    """Write a vector per superpatch of a scan, with its place; returns how many.

    The scan is tiled from its inferior, left, posterior corner; what lies beyond its far ends is air. ``.npz`` holds ``vectors``
    (N, F) float32, ``centres_mm`` (N, 3) (x, y, z of the superpatch's centre in the scan's own RAS+ millimetres), ``starts`` and
    ``valid`` (N, 3) (first voxel and extent inside the scan, (D, H, W)) and ``foreground`` (N,) (mean after windowing);
    ``.parquet`` the same as columns.

    Raises:
        NemesisError: scan, weights or the name of the output cannot be used.
    """
    if out.suffix not in (".npz", ".parquet"):
        raise NemesisError(Fault(str(out), "is neither .parquet nor .npz", "Name the output vectors.parquet or vectors.npz."))
    check_writable(out)
    applied = Applied.load(weights, **told)
    volume = _prepared(_read(scan), applied)
    starts, valid, vectors, shares = [], [], [], []
    with torch.no_grad(), device_for(device) as place:
        applied.network.to(place)
        for start, extent, voxels in _superpatches(volume, applied):
            with arithmetic(place, resolve_precision(precision, place)):
                vectors.append(applied.encode(voxels.to(place)).float().cpu().numpy())
            starts.append(start)
            valid.append(extent)
            shares += [float(v[0, : e[0], : e[1], : e[2]].mean()) for v, e in zip(voxels, extent, strict=True)]
    found = {
        "vectors": np.concatenate(vectors),
        "starts": np.concatenate(starts),
        "valid": np.concatenate(valid),
        "foreground": np.array(shares, np.float32),
    }
    centre = found["starts"] + (np.array(applied.superpatch) - 1) / 2  # (D, H, W) = (z, x, y) of the RAS array
    found["centres_mm"] = (np.c_[centre[:, [1, 2, 0]], np.ones(len(centre))] @ volume.affine.T)[:, :3]
    if out.suffix == ".npz":
        write_npz(out, found)
    else:
        write_parquet(out, _table(found))
    return len(centre)


def reconstruct(
    scan: Path,
    weights: Path,
    out: Path,
    device: str = "auto",
    precision: WantedPrecision = "32-true",
    masked: bool = True,
    seed: int = 0,
    **told: Unpack[Told],
) -> None:
    """Write a scan put together from its reconstructed superpatches, as NIfTI in HU on the very grid of the scan.

    The values are those after windowing. Under the mask of the pretext (``masked``, drawn from ``seed``) only hidden voxels are
    the network's: visible ones are the scan's. Of a network that hides nothing all are its own.

    Raises:
        NemesisError: scan, weights or the name of the output cannot be used, or the method does not reconstruct.
    """
    if not out.name.endswith((".nii", ".nii.gz")):
        raise NemesisError(Fault(str(out), "is no NIfTI file's name", "Name the output reconstruction.nii.gz."))
    check_writable(out)
    applied = Applied.load(weights, **told)
    if applied.method and not applied.method.card.reconstructs:
        raise NemesisError(Fault(str(weights), f"{applied.method.card.title} does not reconstruct", "Use another run."))
    source = _read(scan)
    volume = _prepared(source, applied)
    stitched = np.zeros(volume.hu.shape, np.float32)
    done = 0
    with torch.no_grad(), device_for(device) as place:
        applied.network.to(place)
        for starts, extents, voxels in _superpatches(volume, applied):
            voxels = voxels.to(place)
            keys = Keys.at(seed, 0, range(done, done + len(voxels)), place) if masked else None
            with arithmetic(place, resolve_precision(precision, place)):
                found = applied.reconstruct(voxels, keys)
            pasted = found.prediction.float()
            if found.hidden.any():  # nothing is, unmasked or of a method that hides nothing: then all is the network's
                pasted = torch.where(found.hidden, pasted, voxels)
            for values, start, extent in zip(pasted[:, 0].cpu().numpy(), starts, extents, strict=True):
                box = tuple(slice(s, s + n) for s, n in zip(start, extent, strict=True))
                stitched[box] = values[tuple(slice(n) for n in extent)]
            done += len(voxels)
    low, high = applied.preparation.hu_window
    hu = np.rint(low + stitched * (high - low)).clip(-32768, 32767).astype(np.int16)
    write_bytes(out, _nifti(resample_onto(Volume(hu, volume.spacing, volume.affine), source), out.suffix == ".gz"))


def _nifti(volume: Volume, compressed: bool) -> bytes:
    """A volume on the house's axes as NIfTI, stored as its scan was: axes, affine, shape."""
    import nibabel
    from nibabel import orientations

    library: Any = nibabel  # it is annotated by halves
    turn: Any = orientations
    image = library.Nifti1Image(volume.hu.transpose(1, 2, 0), volume.affine)
    there = turn.ornt_transform(turn.io_orientation(volume.affine), turn.io_orientation(volume.stored))
    image = image.as_reoriented(there)
    image = library.Nifti1Image(np.asarray(image.dataobj), volume.stored)
    image.header.set_xyzt_units("mm")
    data = image.to_bytes()
    return gzip.compress(data, compresslevel=6, mtime=0) if compressed else data


def _read(scan: Path) -> Volume:
    volume = read_volume(scan)
    for note in volume.notes:
        log.info("%s: %s", scan, note)
    return volume


def _prepared(volume: Volume, applied: Applied) -> Volume:
    spacing = applied.preparation.spacing_mm
    return resample(volume, None, spacing)[0] if spacing else volume


def _superpatches(volume: Volume, applied: Applied) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], Tensor]]:
    """Batches of starts (B, 3), extents inside the scan (B, 3) and voxels (B, 1, D, H, W) in [0, 1]."""
    size, shape = applied.superpatch, volume.hu.shape
    starts, valid = grid(shape, size), extents(shape, size)
    batch = batch_size(math.prod(size))
    for first in range(0, len(starts), batch):
        some = slice(first, first + batch)
        crops = [
            pad(volume.hu[tuple(slice(s, s + n) for s, n in zip(start, extent, strict=True))], size, AIR)
            for start, extent in zip(starts[some], valid[some], strict=True)
        ]
        yield starts[some], valid[some], torch.from_numpy(normalise(np.stack(crops), applied.preparation.hu_window))[:, None]


def _table(arrays: dict[str, NDArray[Any]]) -> pyarrow.Table:
    import pyarrow as pa

    columns: dict[str, Any] = {}
    for axis, name in enumerate("dhw"):
        columns |= {f"start_{name}": arrays["starts"][:, axis], f"valid_{name}": arrays["valid"][:, axis]}
    columns |= {f"{name}_mm": arrays["centres_mm"][:, axis] for axis, name in enumerate("xyz")}
    columns["foreground"] = arrays["foreground"]
    vectors = arrays["vectors"]
    columns["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    return pa.table(columns)
