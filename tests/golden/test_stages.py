"""Figures of every stage and method, each beside the version that has to be raised when they change.

Inputs are formulas rather than random numbers where possible, and tolerances leave room for another CPU's last bits.
"""

import hashlib
import json
import os

import nibabel
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from golden_files import FOLDER, check_figures
from phantoms import EDGE, NEMESIS, identity_of, ingest_phantoms
from safetensors.torch import load_file
from tuned import Segmenting, fine_tune, job, labelled_phantoms

import nemesis.data
import nemesis.data.phantom
import nemesis.evaluation
import nemesis.evaluation.features
import nemesis.finetuning
import nemesis.models
import nemesis.training
from nemesis.config import Config, Preparation, Probe, Reconstruction
from nemesis.contract import small_method
from nemesis.data.cases import write_manifest
from nemesis.data.gate import write_index
from nemesis.data.ingest import ingest
from nemesis.data.listings import label_numbers, list_cases
from nemesis.data.phantom import make_subject
from nemesis.data.pools import folds, label_subsets, split, write_pool
from nemesis.data.scans import Scans
from nemesis.data.superpatches import draw_crop, evaluation_superpatches
from nemesis.datasets import ScanFiles
from nemesis.evaluation.features import features
from nemesis.evaluation.probe import probe
from nemesis.evaluation.reconstruction import reconstruct
from nemesis.evaluation.similarity import psnr, ssim
from nemesis.method import Batch, _registry, create, methods, register
from nemesis.method import Reconstruction as Reconstructed
from nemesis.models.keyed import Keys
from nemesis.models.masking import Masking, draw_mask
from nemesis.training import pretrain as pretraining

FIXED = Preparation()
ORGANS = {"liver": 1, "aorta": 2}


def checksum(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def wave(*shape, frequency=0.37):
    """Fixed numbers between -1 and 1 that no random generator has a say in."""
    return torch.sin(frequency * torch.arange(int(np.prod(shape)), dtype=torch.float64) ** 1.1).float().view(shape)


def with_fixed_weights(network):
    """The network with weights made by a formula, about as large as trained ones."""
    with torch.no_grad():
        for number, (name, parameter) in enumerate(sorted(network.named_parameters())):
            scale = 0.3 / max(parameter[0].numel(), 1) ** 0.5 if parameter.ndim > 1 else 0.05
            offset = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0  # of a norm
            parameter.copy_(offset + 2.0 * scale * wave(*parameter.shape, frequency=0.3 + 0.01 * number))
    return network.eval()


def summary(tensor):
    """Mean, spread and eight single numbers of a tensor."""
    flat = tensor.detach().double().flatten()
    some = flat[:: max(1, len(flat) // 8)][:8]
    return [flat.mean().item(), flat.std().item(), *some.tolist()]


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Three hand-made scans with exhaustive labels, one of them stored with turned axes, ingested: scans, cases, index rows."""
    raw, out = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("out")
    for number, axes in enumerate(("RAS", "LPI", "PSR")):
        shape = (22, 30 + number, 19)  # (x, y, z)
        x, y, z = np.indices(shape)
        hu = (7 * x + 13 * y * (number + 1) + 29 * z + x * y * z) % 321 - 140
        hu[x < 4] = -1000
        labels = np.where(x + 2 * y < 40, 1, 0) * (z > 5) + np.where((x > 15) & (y > 20) & (z < 9), 2, 0)
        for name, array in (("image", hu.astype(np.int16)), ("label", labels.astype(np.uint8))):
            image = nibabel.Nifti1Image(array, np.array([[2.0, 0, 0, -5], [0, 1.5, 0, 3], [0, 0, 3.0, 8], [0, 0, 0, 1]]))
            turn = nibabel.orientations.ornt_transform(
                nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(tuple(axes))
            )
            (raw / f"c{number}").mkdir(exist_ok=True)
            nibabel.save(image.as_reoriented(turn), raw / f"c{number}" / f"{name}.nii.gz")
    dataset = ScanFiles(reader="files", name="ct", labels={"exhaustive": "{case}/label.nii.gz"}, label_numbers=ORGANS)

    def ingested(name, preparation):
        cases, folder = list_cases(dataset, raw), out / name
        write_manifest(folder / "manifest.json", dataset, cases, label_numbers(dataset, raw))
        ingest(folder / "manifest.json", raw, folder / "store", folder / "verdicts.json", preparation, EDGE, 0)
        write_index([folder / "verdicts.json"], folder / "index.parquet")
        write_pool(folder / "pool.json", cases, labels=True)
        rows = pq.read_table(folder / "index.parquet").to_pylist()
        return Scans(folder / "pool.json", folder / "index.parquet", preparation), cases, rows

    return ingested


@pytest.fixture(scope="module")
def native(scans):
    """The scans on their own grid, with the table of their superpatches."""
    found, cases, rows = scans("native", FIXED)
    return found, cases, rows, evaluation_superpatches(found, EDGE, list(ORGANS), {"ct": ORGANS}, 100)


def test_phantom():
    values = {}
    for index, spacing in ((0, 12.0), (1, 9.0)):
        subject, name = make_subject(0, index, spacing), f"subject {index} at {spacing:g} mm"
        hu = subject.hu.astype(np.float64).ravel()
        values |= {
            f"{name}: shape": list(subject.hu.shape),
            f"{name}: spacing": [float(s) for s in subject.spacing],
            f"{name}: phase, absent": f"{subject.phase}, {subject.absent}",
            f"{name}: voxels of each label": [float(n) for n in np.bincount(subject.labels.ravel(), minlength=12)],
            f"{name}: HU mean, deviation": [hu.mean(), hu.std()],
            f"{name}: HU of some voxels": hu[:: hu.size // 24][:24].tolist(),
        }
    check_figures(FOLDER / "phantom.json", "nemesis.data.phantom.VERSION", nemesis.data.phantom.VERSION, values, rel=1e-3, abs=1)


def test_data(scans, native):
    found, cases, rows, table = native
    resampled = scans("resampled", Preparation(spacing_mm=(3.0, 2.5, 2.0)))[2]
    values = {}
    for row in rows:
        name = f"index {row['case']}: "
        values |= {name + key: row[key] for key in ("kind", "annotated", "shape", "spacing", "affine", "content_hash")}
        values |= {name + key: row[key] for key in ("hu_mean", "hu_std", "hu_min", "hu_max", "foreground")}
    for row in resampled:
        values[f"resampled {row['case']}: shape"] = row["shape"]
        values[f"resampled {row['case']}: figures"] = [row["hu_mean"], row["hu_std"], row["foreground"]]
    values["crops"] = [checksum(draw_crop(found, EDGE, 5, number)) for number in range(8)]
    places = table[["start_d", "start_h", "start_w", "valid_d", "valid_h", "valid_w"]].to_numpy(np.int64)
    values["superpatches: places"] = checksum(places)
    values["superpatches: foreground"] = table["foreground"].tolist()
    values["superpatches: easy"] = int(table["easy"].sum())
    values |= {f"superpatches: {organ}": "".join(str(n) for n in table[organ]) for organ in ORGANS}
    pools = Config.model_validate(
        {"experiment": "e", "datasets": [{"reader": "phantom"}], "pools": {"evaluation": 1}, "methods": ["ae"]}
    )
    values["pools"] = [" ".join(case.case for case in pool) for pool in split(cases, pools.pools)]
    patients = [f"ct/p{n:02d}" for n in range(11)]
    values["folds"] = [" ".join(fold) for fold in folds(patients, 3, 0)]
    values["label fractions"] = [" ".join(p) for p in label_subsets(patients, [0.1, 0.5], 1, 0).values()]
    check_figures(FOLDER / "data.json", "nemesis.data.VERSION", nemesis.data.VERSION, values, rel=1e-4, abs=1e-6)


def test_models():
    method = create("nemesis", {**NEMESIS, "dropout": 0.0}, EDGE)
    network = with_fixed_weights(method.build())
    voxels = 0.5 + 0.5 * wave(2, 1, EDGE, EDGE, EDGE)
    keys = Keys.at(3, 7, [0, 5])
    scores = keys.uniform("mask", 64)
    mask = draw_mask((4, 4, 4), Masking(), scores)
    with torch.no_grad():
        output = network(voxels, mask, 0.03 * keys.normal("noise", 8 * 2 * 64).view(2, 16, 4, 16))
        values = {
            "uniform": summary(scores),
            "normal": summary(keys.normal("noise", 50)),
            "choice": [keys.batch_choice("noise level", 4), Keys.at(3, 8, [0]).batch_choice("noise level", 4)],
            "kept at random": mask.keep.flatten().tolist(),
            "kept around a block": draw_mask((4, 4, 4), Masking(axis="contiguous"), scores).keep.flatten().tolist(),
            "positions": summary(network.encoder.positions),
            "embedding": summary(network.encoder.embed(voxels)),
            "loss": [output.loss.item(), output.full_mse.item()],
            "prediction": summary(output.prediction),
        }
    torch.manual_seed(0)
    values["norms at the start"] = [p.detach().norm().item() for _, p in sorted(method.build().named_parameters())]
    check_figures(FOLDER / "models.json", "nemesis.models.VERSION", nemesis.models.VERSION, values, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("name", list(methods()))
def test_methods(name):
    """Every method that has a golden file; ``NEMESIS_UPDATE_GOLDEN=1`` writes that of a new one."""
    path = FOLDER / "methods" / f"{name}.json"
    if not path.exists() and os.environ.get("NEMESIS_UPDATE_GOLDEN") != "1":
        pytest.skip(f"{name} has no golden file yet: NEMESIS_UPDATE_GOLDEN=1 writes it")
    method = small_method(name)
    network = with_fixed_weights(method.build())
    edge = method.superpatch
    voxels, keys, values = 0.5 + 0.5 * wave(2, 1, edge, edge, edge), Keys.at(3, 7, [0, 5]), {}
    with torch.no_grad():
        values["features"] = summary(method.encode(network, voxels))
        if method.card.pretext:
            seen = 0.5 + 0.5 * wave(2, 1, *method.draw().size)
            classes = known = None
            if method.card.uses_labels:
                count = len(method.settings.classes)
                classes = (seen * (count + 1)).clamp_max(count).to(torch.uint8)
                known = torch.tensor([[True] * count, [True] + [False] * (count - 1)])
            loss = method.pretext_loss(network, Batch(seen, keys, classes, known))
            values["loss"] = loss.total.item()
            values |= {f"monitor {key}": value.item() for key, value in sorted(loss.monitors.items())}
        if method.card.reconstructs:
            for title, mask_keys in (("masked", keys), ("whole", None)):
                found = method.reconstruct(network, voxels, mask_keys)
                values[f"reconstruction, {title} input"] = summary(found.prediction)
                values[f"hidden, {title} input"] = int(found.hidden.sum())
    version = {"method": method.card.version, "models": nemesis.models.VERSION}
    check_figures(path, f"the version in the card of '{name}'", version, values, rel=1e-3, abs=1e-4)


def test_training(tmp_path, monkeypatch):
    """Dropout is left out: its random numbers are torch's own business."""
    identity = identity_of({"dropout": 0.0}, steps=12, batch_size=4)
    monkeypatch.setattr(pretraining, "LOG_EVERY", 3)
    pretraining.pretrain(identity, tmp_path / "run", *ingest_phantoms(tmp_path), "cpu", workers=0, state_every=100)
    curve = [json.loads(line) for line in (tmp_path / "run/curve.jsonl").read_text().splitlines()]
    weights = load_file(tmp_path / "run/checkpoint.safetensors")
    values = {key: [float(point[key]) for point in curve] for key in ("step", "learning_rate", "loss", "psnr")}
    values |= {f"norm of {name}": weight.norm().item() for name, weight in sorted(weights.items())}
    version = {**identity["versions"], "method": identity["method_version"], "phantom": nemesis.data.phantom.VERSION}
    check_figures(FOLDER / "training.json", "nemesis.training.VERSION", version, values, rel=1e-3, abs=1e-7)


def test_features(native):
    found, _, _, table = native
    method = create("nemesis", NEMESIS, EDGE)
    encoded = features(method, with_fixed_weights(method.build()), found, table, EDGE, torch.device("cpu"))
    values = {"shape": list(encoded.shape), "features": summary(torch.from_numpy(encoded))}
    version = {"encoding": nemesis.evaluation.features.ENCODING, "models": nemesis.models.VERSION, "data": nemesis.data.VERSION}
    check_figures(FOLDER / "features.json", "nemesis.evaluation.features.ENCODING", version, values, rel=1e-3, abs=1e-4)


class Blur:
    """Hides half the voxels, and answers with something near the truth; only what reconstruct asks of a method."""

    def attention(self, network, voxels):
        return {}

    def reconstruct(self, network, voxels, keys):
        hidden = torch.zeros_like(voxels, dtype=torch.bool)
        if keys is not None:
            hidden = (keys.uniform("mask", voxels[0].numel()) < 0.5).view(voxels.shape)
        return Reconstructed(0.9 * voxels + 0.04 + 0.02 * wave(*voxels.shape[1:]), hidden)


def test_finetuning(tmp_path):
    register(Segmenting)
    try:
        cohort = labelled_phantoms(tmp_path / "cohort", 6)
        for name in ("nemesis", "segmenting"):
            both = {"tasks": ["presence", "segmentation"], "folds_held_out": 2, "label_fractions": [0.5, 1.0]}
            fine_tune(job(cohort, tmp_path / name, name, **both))
    finally:
        _registry.pop("segmenting")
    values = {}
    for name in ("nemesis", "segmenting"):
        rows = pd.read_parquet(tmp_path / name / "rows.parquet")
        for key, part in rows.groupby(["protocol", "label_fraction", "metric"], dropna=False):
            values[f"{name} {', '.join(str(k) for k in key if not pd.isna(k))}"] = float(part["value"].mean())
        found = pd.read_parquet(tmp_path / name / "predictions.parquet")
        values[f"{name} scores"] = found.groupby("organ")["score"].mean().tolist()
        values[f"{name} lines"] = [len(found), len(pd.read_parquet(tmp_path / name / "segmentations.parquet"))]
    version = nemesis.finetuning.VERSION
    check_figures(FOLDER / "finetuning.json", "nemesis.finetuning.VERSION", version, values, rel=2e-2, abs=2e-2)


def test_evaluation(native):
    n = 15 * 12
    table = pd.DataFrame({"dataset": "ct", "patient": np.repeat([f"p{i:02d}" for i in range(15)], 12)})
    table["easy"] = np.arange(n) % 5 == 4
    latent = wave(n, 2, frequency=0.71).numpy()
    encoded = (latent @ wave(2, 16).numpy() + 0.8 * wave(n, 16, frequency=0.53).numpy()).astype(np.float32)
    truth = (latent + 0.3 * wave(n, 2, frequency=1.3).numpy() > 0.4) & ~table["easy"].to_numpy()[:, None]
    for number, organ in enumerate(("liver", "spleen")):
        table[organ] = truth[:, number].astype(np.int8)
    table.loc[table["patient"] == "p03", "spleen"] = -1
    settings = Probe(label_fractions=[0.3, 1.0], draws=2, folds=3, neighbours=5, regularisation=[0.01, 1.0])
    predictions, rows = probe(encoded, table, ["liver", "spleen"], settings)
    frame = predictions.to_pandas()
    values = {"predictions": len(frame), "problems": int(frame.groupby(["label_fraction", "draw", "fold"]).ngroups)}
    for (protocol, organ), part in frame.groupby(["protocol", "organ"], observed=True):
        values[f"probe {protocol}, {organ}: score, threshold"] = [float(part[key].mean()) for key in ("score", "threshold")]
    measured = pd.DataFrame(rows)
    keys = ["metric", "protocol", "label_fraction", "easy_negatives"]
    for key, part in measured.groupby(keys, dropna=False, sort=True):
        name = ", ".join(str(k) for k in key if not pd.isna(k))
        values[f"probe {name}"] = float(part["value"].mean())

    a, b = 0.5 + 0.5 * wave(14, 15, 16), 0.5 + 0.4 * wave(14, 15, 16, frequency=0.371)
    values["psnr, ssim"] = [psnr(a, b), ssim(a, b)]
    found, _, _, superpatches = native
    rows, _, material = reconstruct(Blur(), None, found, superpatches, EDGE, Reconstruction(), torch.device("cpu"))
    for row in rows:
        name = f"{row['scope']}, {row['metric']}, {row['region']}, masked {row['input_masked']}, easy {row['easy_negatives']}"
        values[f"reconstruction {name}"] = [float(row["value"]), float(row["n_patients"])]
    values["figure"] = [
        float(material[key].astype(np.float64).mean()) for key in ("input", "reconstruction", "hidden", "spacing")
    ]
    check_figures(
        FOLDER / "evaluation.json", "nemesis.evaluation.VERSION", nemesis.evaluation.VERSION, values, rel=1e-3, abs=1e-3
    )
