"""Encoders for people who only want those: a scan in, vectors with their places or a reconstruction out."""

import gzip
import json
from functools import partial

import nibabel
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from phantoms import NEMESIS, identity_of
from small_scans import RAS, body, save

import nemesis
from nemesis.cli import export
from nemesis.config import Preparation
from nemesis.errors import NemesisError
from nemesis.evaluation.similarity import measure
from nemesis.method import Reconstruction, create
from nemesis.models.checkpoint import save_weights
from nemesis.models.keyed import Keys
from nemesis.models.mae import MAEgic3DMAE
from nemesis.pretrained import Applied, embed, reconstruct

LOW, HIGH = Preparation().hu_window


def run_folder(folder, name="nemesis", **other):
    """A run as `nemesis pretrain` leaves it, untrained."""
    identity = identity_of(name=name, settings=other if name == "nemesis" else {"embed_dim": 64, "depth": 1})
    torch.manual_seed(0)
    method = create(name, identity["settings"], identity["superpatch"])
    network = method.build().eval()
    folder.mkdir()
    save_weights(network, folder / "checkpoint.safetensors", {})
    (folder / "run.json").write_text(json.dumps(identity))
    return method, network


def windowed(hu):
    """HU → [0, 1], float32."""
    return np.clip((hu.astype(np.float32) - LOW) / (HIGH - LOW), 0, 1)


def house(path):
    """A NIfTI as nibabel reads it, turned to the house's axes."""
    image = nibabel.as_closest_canonical(nibabel.load(path))
    return np.asarray(image.dataobj).transpose(2, 0, 1), image.affine


@pytest.mark.parametrize("name", ["nemesis", "random_vit"])
def test_embeds_every_superpatch_at_its_place(name, tmp_path):
    method, network = run_folder(tmp_path / "run", name)
    hu = body((20, 24, 16))
    scan = save(tmp_path / "scan.nii.gz", hu, axes="LPS")
    assert embed(scan, tmp_path / "run", tmp_path / "v.parquet", "cpu") == 4
    table = pq.read_table(tmp_path / "v.parquet").to_pandas()
    assert table[["start_d", "start_h", "start_w"]].values.tolist() == [[0, 0, 0], [0, 16, 0], [16, 0, 0], [16, 16, 0]]
    assert table["valid_d"].tolist() == [16, 16, 4, 4]
    # the centre of the first 16³ superpatch: 7.5 voxels of 2 × 1.5 × 3 mm from the first voxel's, along x, y, z
    assert np.allclose(table.loc[0, ["x_mm", "y_mm", "z_mm"]].astype(float), [15, 11.25, 22.5])
    assert np.allclose(table.loc[1, ["x_mm", "y_mm", "z_mm"]].astype(float), [47, 11.25, 22.5])  # H runs along x
    insides = [windowed(hu[d : d + 16, h : h + 16]) for d in (0, 16) for h in (0, 16)]
    assert np.allclose(table["foreground"], [inside.mean() for inside in insides], atol=1e-6)  # no padding in it
    crop = torch.from_numpy(windowed(hu[:16, :16, :16]))[None, None]
    with torch.no_grad():
        expected = method.encode(network, crop)[0].numpy()
    assert np.allclose(table["vector"][0], expected, atol=1e-5)
    embed(scan, tmp_path / "run", tmp_path / "v.npz", "cpu")
    with np.load(tmp_path / "v.npz") as arrays:
        assert np.array_equal(arrays["vectors"], np.stack(table["vector"]))
        assert np.allclose(arrays["centres_mm"], table[["x_mm", "y_mm", "z_mm"]])


def test_a_released_checkpoint_embeds_and_reconstructs(tmp_path):
    from nemesis.models.released import export_released

    torch.manual_seed(0)
    model = MAEgic3DMAE(superpatch_size=16, patch_size=4, embed_dim=64, depth=1, decoder_depth=1).eval()
    export_released(model, tmp_path / "w.pt")
    scan = save(tmp_path / "scan.nii.gz", body((16, 16, 16)))
    embed(scan, tmp_path / "w.pt", tmp_path / "v.npz", "cpu")
    with np.load(tmp_path / "v.npz") as arrays:
        assert arrays["vectors"].shape == (1, 64)
    for ratio, visible in ((0.75, 1 / 16), (0.5, 1 / 4), (0.0, 0)):  # where nothing is hidden, nothing is the scan's
        told = {"spatial_mask_ratio": ratio, "depth_mask_ratio": ratio}
        reconstruct(scan, tmp_path / "w.pt", tmp_path / "r.nii", "cpu", **told)
        kept = house(tmp_path / "r.nii")[0] == body((16, 16, 16)).clip(int(LOW), int(HIGH))
        assert kept.mean() == pytest.approx(visible, abs=0.02)


def test_precision_is_that_of_the_network(tmp_path):
    run_folder(tmp_path / "run")
    scan, vectors, volumes = save(tmp_path / "scan.nii", body((16, 16, 16))), [], []
    for precision in ("32-true", "bf16-mixed"):
        embed(scan, tmp_path / "run", tmp_path / "v.npz", "cpu", precision)
        reconstruct(scan, tmp_path / "run", tmp_path / "r.nii", "cpu", precision, masked=False)
        with np.load(tmp_path / "v.npz") as arrays:
            vectors.append(arrays["vectors"])
        volumes.append(house(tmp_path / "r.nii")[0])
    for exact, rough, tolerance in ((*vectors, 0.05), (*volumes, 10)):
        assert not np.array_equal(exact, rough) and np.allclose(exact, rough, atol=tolerance)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("axes", ["RAS", "LPS", "SAL"])
def test_reconstructs_onto_the_grid_of_the_scan(masked, axes, tmp_path):
    run_folder(tmp_path / "run")
    hu = body((20, 24, 17))
    scan = save(tmp_path / "scan.nii.gz", hu, axes=axes)
    reconstruct(scan, tmp_path / "run", tmp_path / "r.nii.gz", "cpu", masked=masked)
    stored, source = nibabel.load(tmp_path / "r.nii.gz"), nibabel.load(scan)
    assert stored.shape == source.shape and np.allclose(stored.affine, source.affine)
    found, affine = house(tmp_path / "r.nii.gz")
    assert np.allclose(affine, RAS)
    kept = (found == np.clip(hu, LOW, HIGH)).mean()
    assert (kept > 0.24) == masked  # a quarter is visible, and stays as it was


@pytest.mark.parametrize("plane", ["columns", "per_slice", "thinned", "uniform"])
def test_only_hidden_voxels_are_written_anew(plane, tmp_path):
    method, network = run_folder(tmp_path / "run", plane_masking=plane)
    hu = np.maximum(body((16, 16, 16)), 0)
    hu[0, 0] = -1000
    voxels = torch.from_numpy(windowed(hu))[None, None]
    reconstruct(save(tmp_path / "scan.nii", hu), tmp_path / "run", tmp_path / "r.nii", "cpu", seed=7)
    written = house(tmp_path / "r.nii")[0]
    with torch.no_grad():
        found = method.reconstruct(network, voxels, Keys.at(7, 0, [0]))
    hidden, prediction = found.hidden[0, 0].numpy(), found.prediction[0, 0].numpy()
    assert hidden.mean() == method.masking.hidden_share(method.architecture.grid)
    assert np.array_equal(written[~hidden], hu.clip(int(LOW), int(HIGH))[~hidden])
    assert np.allclose(written[hidden], LOW + prediction[hidden] * (HIGH - LOW), atol=0.6)  # whole HU
    assert (written[hidden] != hu.clip(int(LOW), int(HIGH))[hidden]).mean() > 0.9


@pytest.mark.parametrize("masked", [True, False])
def test_of_a_network_that_hides_nothing_all_is_written_anew(masked, tmp_path):
    method, network = run_folder(tmp_path / "run", plane_mask_ratio=0.0, axis_mask_ratio=0.0)
    hu = body((16, 16, 16))
    reconstruct(save(tmp_path / "scan.nii", hu), tmp_path / "run", tmp_path / "r.nii", "cpu", masked=masked)
    with torch.no_grad():
        prediction = method.reconstruct(network, torch.from_numpy(windowed(hu))[None, None], None).prediction[0, 0].numpy()
    assert np.allclose(house(tmp_path / "r.nii")[0], LOW + prediction * (HIGH - LOW), atol=0.6)


def test_masks_follow_the_seed_and_the_superpatch_s_place_not_the_batch(tmp_path, monkeypatch):
    run_folder(tmp_path / "run")
    hu = np.tile(body((16, 16, 16)), (1, 2, 1))
    hu[0, 0] = -1000
    scan, found = save(tmp_path / "scan.nii", hu), {}
    for seed, batch in ((0, 64), (0, 1), (1, 64)):
        monkeypatch.setattr("nemesis.pretrained.batch_size", lambda voxels, batch=batch: batch)
        reconstruct(scan, tmp_path / "run", tmp_path / "r.nii", "cpu", seed=seed)
        found[seed, batch] = house(tmp_path / "r.nii")[0].astype(int)
    assert np.abs(found[0, 64] - found[0, 1]).max() <= 1  # rounded
    assert (found[0, 64] != found[1, 64]).mean() > 0.1
    kept = found[0, 1] == hu.clip(int(LOW), int(HIGH))
    assert (kept[:, :16] != kept[:, 16:]).mean() > 0.1


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
@pytest.mark.parametrize("packed", [True, False])
def test_a_scan_s_content_says_whether_it_is_compressed(name, packed, tmp_path):
    run_folder(tmp_path / "run")
    plain = save(tmp_path / "plain.nii", body((16, 16, 16)), axes="LPS")
    (tmp_path / name).write_bytes(gzip.compress(plain.read_bytes()) if packed else plain.read_bytes())
    reconstruct(tmp_path / name, tmp_path / "run", tmp_path / "r.nii", "cpu")
    assert np.allclose(nibabel.load(tmp_path / "r.nii").affine, nibabel.load(plain).affine)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.tuples(*[st.integers(8, 40)] * 3), st.tuples(*[st.sampled_from([8, 16])] * 3))
def test_an_identity_network_gives_the_scan_back_whatever_its_size(tmp_path, shape, superpatch):
    hu = body(shape).clip(int(LOW), int(HIGH))
    hu[0, 0] = -150  # something like fat, so that it passes for CT
    identity = Applied(torch.nn.Identity(), superpatch, Preparation(), None)
    identity.reconstruct = lambda voxels, keys: Reconstruction(voxels, torch.ones_like(voxels, dtype=torch.bool))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Applied, "load", lambda path: identity)
        reconstruct(save(tmp_path / "scan.nii.gz", hu), tmp_path, tmp_path / "r.nii.gz", "cpu")
    assert np.array_equal(house(tmp_path / "r.nii.gz")[0], hu)


def test_a_scan_that_is_resampled_comes_back_on_its_own_grid(tmp_path):
    hu = np.full((24, 30, 20), -175, np.int16)
    hu[6:18, 8:20, 5:15] = 100
    hu[0, 0] = -150
    identity = Applied(torch.nn.Identity(), (16, 16, 16), Preparation(spacing_mm=(1.5, 1.0, 1.0)), None)
    identity.reconstruct = lambda voxels, keys: Reconstruction(voxels, torch.ones_like(voxels, dtype=torch.bool))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Applied, "load", lambda path: identity)
        scan = save(tmp_path / "scan.nii.gz", hu, axes="LPS")
        reconstruct(scan, tmp_path, tmp_path / "r.nii.gz", "cpu")
    assert np.allclose(nibabel.load(tmp_path / "r.nii.gz").affine, nibabel.load(scan).affine)
    found, affine = house(tmp_path / "r.nii.gz")
    assert found.shape == hu.shape and np.allclose(affine, RAS)
    assert (np.abs(found.astype(int) - hu) < 30).mean() > 0.9  # but for edges, which were interpolated twice
    assert (found[8:16, 10:18, 7:13] == 100).all()


def test_load_takes_a_run_s_folder_and_refuses_other_methods(tmp_path):
    _, network = run_folder(tmp_path / "run")
    x = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        for path in (tmp_path / "run", tmp_path / "run/checkpoint.safetensors"):
            assert torch.equal(nemesis.load(path).encoder.embed(x), network.encoder.embed(x))
    with pytest.raises(NemesisError, match="says itself what it is; num_heads, dropout can be told"):
        embed(tmp_path / "scan.nii", tmp_path / "run", tmp_path / "v.npz", num_heads=4, dropout=0.0, patch_size=None)
    run_folder(tmp_path / "other", "random_vit")
    with pytest.raises(NemesisError, match="another method"):
        nemesis.load(tmp_path / "other")
    (tmp_path / "other/run.json").write_text('{"method": "random_vit"}')
    with pytest.raises(NemesisError, match="does not describe a run"):
        nemesis.load(tmp_path / "other")


@pytest.mark.parametrize("own", [False, True])
def test_an_exported_run_prepares_scans_as_the_run_does(tmp_path, own):
    run_folder(tmp_path / "run")
    identity = json.loads((tmp_path / "run/run.json").read_text())
    identity["preparation"] |= {"spacing_mm": [9.0, 9.0, 9.0] if own else [3.0, 1.0, 1.5], "hu_window": [-100.0, 300.0]}
    identity |= {"spacing_mm": [3.0, 1.0, 1.5]} if own else {}
    (tmp_path / "run/run.json").write_text(json.dumps(identity))
    nemesis.load(tmp_path / "run").save_pretrained(tmp_path / "net")
    scan = save(tmp_path / "scan.nii.gz", body((20, 24, 16)))
    found = []
    for weights in ("run", "net"):
        embed(scan, tmp_path / weights, tmp_path / "v.npz", "cpu")
        with np.load(tmp_path / "v.npz") as arrays:
            found.append(dict(arrays))
    assert len(found[0]["vectors"]) == 6  # 20 × 48 × 16 voxels of the run's spacing
    assert all(np.array_equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("seed", range(3))
def test_the_pasted_error_is_the_masked_one_spread_over_the_whole(seed):
    method = create("nemesis", NEMESIS, 16)
    voxels = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        found = method.reconstruct(method.build().eval(), voxels, Keys.at(seed, 0, [0]))
    truth, hidden, predicted = voxels[0, 0], found.hidden[0, 0], found.prediction[0, 0]
    figures = measure(truth, hidden, predicted, truth, predicted)
    spread = figures[True, "masked", "psnr"] - 10 * np.log10(0.75)
    assert figures[True, "whole", "psnr"] == pytest.approx(spread, abs=1e-3)


def test_outputs_of_no_known_kind_are_refused_before_anything_is_read(tmp_path):
    with pytest.raises(NemesisError, match=r"neither \.parquet nor \.npz"):
        embed(tmp_path / "none.nii", tmp_path / "none", tmp_path / "v.csv")
    with pytest.raises(NemesisError, match="no NIfTI"):
        reconstruct(tmp_path / "none.nii", tmp_path / "none", tmp_path / "r.mha")
    run_folder(tmp_path / "run", "random_vit")
    with pytest.raises(NemesisError, match="does not reconstruct"):
        reconstruct(save(tmp_path / "s.nii.gz", body()), tmp_path / "run", tmp_path / "r.nii.gz", "cpu")


@pytest.mark.parametrize(
    ("out", "what"),
    [
        ("folder.npz", r"folder\.npz: is a folder"),
        ("folder.nii.gz", r"folder\.nii\.gz: is a folder"),
        ("folder.pt", r"folder\.pt: is a folder"),
        ("file/v.parquet", r"v\.parquet: cannot be written"),
        ("file/deeper/r.nii", r"r\.nii: cannot be written"),
        ("file/net.pt", r"net\.pt: cannot be written"),
        ("file/net", r"card\.json: cannot be written"),
    ],
)
def test_outputs_that_cannot_be_written_are_refused_before_anything_is_read(out, what, tmp_path):
    none, path = tmp_path / "none", tmp_path / out
    (tmp_path / "file").touch()
    if "folder" in out:
        path.mkdir()
    if path.suffix in (".pt", ""):
        call = partial(export, none, path)
    else:
        call = partial(reconstruct if ".nii" in out else embed, none, none, path, "cpu")
    with pytest.raises(NemesisError, match=what) as error:
        call()
    assert "\n" not in str(error.value)


def test_planning_with_nemesis_imports_no_torch():
    import subprocess
    import sys

    code = "import nemesis, sys; assert 'torch' not in sys.modules; nemesis.load; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = nemesis.lode
