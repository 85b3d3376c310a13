"""The plain network that speed is measured against computes the same thing; the other benchmarks measure what they say."""

import json
import sys

import numpy as np
import pytest
import torch
from small_scans import body, save

from benchmarks import ingestion, loading, scale, speed
from benchmarks.reference import PlainMAE, masks_by_loop
from benchmarks.scans import real_scan, write_nifti
from nemesis.models.architecture import OFFICIAL, Architecture
from nemesis.models.autoencoder import MaskedAutoencoder
from nemesis.models.masking import Masking, mask_of


def test_the_plain_network_and_the_suite_s_agree():
    torch.manual_seed(0)
    architecture = Architecture((32, 32, 32), (8, 8, 8), embed_dim=64, depth=2, decoder_depth=1, dropout=0.0, **OFFICIAL)
    plain, suite = PlainMAE(architecture), MaskedAutoencoder(architecture)
    suite.load_state_dict(plain.state_dict())
    x = torch.rand(2, 1, 32, 32, 32)
    keep = masks_by_loop(architecture.grid, Masking("thinned"), 2)
    hidden = torch.ones(2, 64, dtype=torch.bool).scatter(1, keep.flatten(1), False)
    losses = plain(x, keep), suite(x, mask_of(hidden, architecture.grid)).loss
    for loss in losses:
        loss.backward()
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
    for (name, p), q in zip(plain.named_parameters(), suite.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, atol=1e-6), name
    with torch.no_grad():
        assert torch.allclose(plain.embed(x), suite.encoder.embed(x), atol=1e-5)


def test_masks_by_loop_hide_what_the_suite_s_hide():
    masking = Masking("thinned", "random", 0.5, 0.25)
    keep = masks_by_loop((4, 4, 4), masking, 3)
    assert keep.shape == (3, *masking.visible((4, 4, 4)))
    assert ((keep // 16) == torch.arange(4)[:, None]).all()


@pytest.mark.parametrize("task", list(speed.TASKS))
def test_each_task_is_measured_beside_the_plain_network(task, tmp_path, monkeypatch, capsys):
    sizes = ["--superpatch", "16", "--patch", "8", "--embed-dim", "64", "--batch", "2", "--rounds", "1", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["speed", task, *sizes, "--device", "cpu", "--out", str(tmp_path / "found.json")])
    monkeypatch.setattr(speed, "_in_a_process", lambda function, *arguments: max(function(*arguments), 1.0))
    threads = torch.get_num_threads()
    speed.main()
    torch.set_num_threads(threads)
    found = json.loads((tmp_path / "found.json").read_text())
    assert set(found["networks"]) == {"plain", "suite"} and found["task"] == task
    assert all(figures["superpatches_per_second"] > 0 for figures in found["networks"].values())
    assert "times as fast" in capsys.readouterr().out


@pytest.fixture
def folder(tmp_path):
    """Two small scans, and one whose planes have another size."""
    for name, shape in (("a", (12, 48, 48)), ("b", (9, 48, 48)), ("other", (20, 40, 48))):
        save(tmp_path / "ct" / name / "image.nii.gz", body(shape))
    return tmp_path / "ct"


SMALL = ["--plane", "48", "--slices", "40", "--superpatch", "16"]


def test_the_scan_is_made_of_the_values_of_real_slices(folder, tmp_path):
    hu = real_scan(folder, 48, 80)
    assert hu.shape == (80, 48, 48)
    np.testing.assert_array_equal(hu[:12], body((12, 48, 48)))
    np.testing.assert_array_equal(hu[21:33], body((12, 48, 48))[:, ::-1])
    with pytest.raises(SystemExit, match="84 slices"):
        real_scan(folder, 48, 90)
    with pytest.raises(SystemExit, match="no image"):
        real_scan(folder, 64, 10)
    sizes = [write_nifti(tmp_path / "x.nii.gz", hu, level).stat().st_size for level in (1, 9)]
    assert sizes[1] < sizes[0]


def test_crops_are_measured_beside_whole_files(folder, tmp_path, monkeypatch, capsys):
    words = ["crops", str(folder), *SMALL, "--rounds", "2", "--workers", "0", "--out", str(tmp_path / "found.json")]
    monkeypatch.setattr(sys, "argv", ["loading", *words])
    monkeypatch.setattr(loading, "BATCHES", 10)
    loading.main()
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found["rounds"]) == 2 and found["scan"] == [40, 48, 48] and found["bytes"] == 2 * 40 * 48 * 48
    ratios = [one["whole_seconds"] / one["crop_seconds"] for one in found["rounds"]]
    assert min(ratios) == found["ratio"]["least"] and max(ratios) == found["ratio"]["most"]
    assert set(found["nii_gz_bytes"]) == {"gzip 1", "gzip 6", "gzip 9"} and found["stored_bytes"] > 0
    assert 0 < found["crop_read_bytes"] < found["stored_bytes"] * 1.2 and found["crop_reads"] >= 1
    assert found["crops_per_second"]["0"] > 0 and "times as fast" in capsys.readouterr().out


def test_the_share_of_a_step_spent_waiting_is_a_share(folder, tmp_path, monkeypatch):
    demo = loading.merged([loading.DEMO])
    method = {"name": "nemesis", "settings": {"embed_dim": 64, "depth": 1, "decoder_depth": 1, "decoder_dim": 32}}
    cohort = {"base_spacing_mm": 12.0}
    monkeypatch.setattr(loading, "merged", lambda _: {**demo, "superpatch": 16, "methods": [method], "datasets": [cohort]})
    words = ["waiting", str(folder), "--steps", "20", "--workers", "0", "--device", "cpu", "--out", str(tmp_path / "found.json")]
    monkeypatch.setattr(sys, "argv", ["loading", *words])
    loading.main()
    found = json.loads((tmp_path / "found.json").read_text())
    assert 0 <= found["workers"]["0"]["share"] <= 1 and found["workers"]["0"]["step_seconds"] > 0 and found["superpatch"] == 16


def test_what_waits_for_its_batches_is_seen(monkeypatch):
    now = 0

    def slow():
        nonlocal now
        for number in range(14):
            now += 3
            yield number

    monkeypatch.setattr(loading.time, "perf_counter", lambda: now)
    watched = loading._Watched(slow())
    for _ in watched:
        now += 1
    assert (watched.waited, watched.all, watched.steps) == (9, 12, 3)


def test_ingestion_is_measured_beside_gzip(folder, tmp_path, monkeypatch, capsys):
    words = [str(folder), *SMALL, "--scans", "3", "--workers", "0", "--out", str(tmp_path / "found.json")]
    monkeypatch.setattr(sys, "argv", ["ingestion", *words])
    ingestion.main()
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["scans"] == 3 and found["int16_bytes"] == 2 * 40 * 48 * 48 and found["peak_bytes_above_idle"] > 0
    assert found["seconds_per_scan"] > 0 and found["gzip_seconds"] > 0
    assert "gzip alone" in capsys.readouterr().out


def test_scale_is_measured_from_planning_to_sampling(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["scale", "--scans", "30", "--shard", "10", "--out", str(tmp_path / "found.json")])
    monkeypatch.setattr(scale, "DRAWS", 3)
    monkeypatch.setattr(scale, "_in_a_process", lambda function, *arguments: scale._watched(function, *arguments))
    scale.main()
    found = json.loads((tmp_path / "found.json").read_text())
    assert {"plan", "plan again", "gate", "open the index", "sample it"} <= set(found)
    assert found["bytes"]["index.maps"] == 30 * 19 * 32 * 32
    assert "A draw, up to the reading of its crop" in capsys.readouterr().out
