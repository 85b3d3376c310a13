"""The probe's benchmark measures the probe, and counts what encoding in every epoch would take."""

import json
import sys

import pytest
import torch

from benchmarks import probe
from nemesis.config import Probe


def test_the_probe_is_measured_beside_encoding_in_every_epoch(tmp_path, monkeypatch, capsys):
    out = tmp_path / "probe.json"
    sizes = ["--superpatches", "120", "--patients", "12", "--organs", "2", "--features", "64", "--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["probe", *sizes, "--superpatch", "16", "--encoded", "2", "--out", str(out)])
    threads = torch.get_num_threads()
    probe.main()
    torch.set_num_threads(threads)
    found = json.loads(out.read_text())
    # 3 fractions drawn 5 times and all labels once; every superpatch is tested for each organ, by both protocols
    assert found["predictions"] == 2 * 2 * 120 * 16
    assert found["mean_auroc"] > 0.5 and found["wall_seconds"] > 0
    once = 120 * found["encoding_seconds"] + found["wall_seconds"]
    assert found["ratio"] == pytest.approx(found["released_encodings"] * found["encoding_seconds"] / once)
    assert "times as long" in capsys.readouterr().out


def test_an_epoch_encodes_training_and_test_patients_of_every_problem():
    table, _ = probe.cohort(120, 12, 2, 4)
    settings = Probe(folds=3, label_fractions=[0.5, 1.0], draws=2)
    # in each of 3 folds 4 patients are tested; 4 train in each of 2 draws of half of the labels, 8 at all of them
    assert probe.encoded_in_an_epoch(table, probe.organ_names(2), settings) == 10 * 3 * (2 * (4 + 4) + 8 + 4)
