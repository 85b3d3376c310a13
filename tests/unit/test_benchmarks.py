"""The plain network that speed is measured against computes the same thing."""

import json
import sys

import pytest
import torch

from benchmarks import speed
from benchmarks.reference import PlainMAE, masks_by_loop
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
