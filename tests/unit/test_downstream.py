"""The pieces of fine-tuning, on input checkable by hand."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tuned import ORGANS, Segmenting, SegmentingNetwork, labelled_phantoms

from nemesis.config import Preparation
from nemesis.data.samples import Labelling
from nemesis.data.scans import Scans
from nemesis.data.superpatches import evaluation_superpatches
from nemesis.errors import NemesisError
from nemesis.evaluation import downstream
from nemesis.evaluation.cost import MethodCost
from nemesis.evaluation.counters import by_torch
from nemesis.evaluation.downstream import cost_rows, matched_steps, pretraining_macs, segmenter_macs
from nemesis.evaluation.organs import LabelledScans, SegmentationTask
from nemesis.evaluation.presence import Presence, Windows, masked_bce
from nemesis.evaluation.statistics import mean_over_organs
from nemesis.evaluation.tuning import Tuning
from nemesis.finetuning import Finetuning
from nemesis.method import Settings, create


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return labelled_phantoms(tmp_path_factory.mktemp("cohort"), 5)


@pytest.fixture(scope="module")
def scans(cohort):
    found = Scans(Path(cohort["pool"]), Path(cohort["index"]), Preparation())
    return LabelledScans(found, None, Labelling(found, ORGANS, cohort["label_numbers"]), 16)


def test_unknown_organs_have_no_part_in_the_loss():
    logits = torch.tensor([[0.0, 100.0], [math.log(3.0), -100.0]], requires_grad=True)
    truth = torch.tensor([[True, False], [False, True]])
    known = torch.tensor([[True, False], [True, False]])
    loss = masked_bce(logits, truth, known)
    assert loss.item() == pytest.approx((math.log(2) + math.log(4)) / 2)
    loss.backward()
    assert logits.grad[:, 1].abs().sum() == 0
    assert masked_bce(logits, truth, torch.zeros_like(known)).item() == 0


def test_a_superpatch_of_several_windows_is_judged_by_the_mean_of_their_vectors():
    method = Segmenting(Settings(), 8)
    torch.manual_seed(0)
    model = Presence(method, SegmentingNetwork(), 2).eval()
    voxels = torch.rand(3, 1, 8, 8, 8)
    together = model(voxels, torch.tensor([0, 0, 1]))
    vectors = method.encode(model.network, voxels)
    assert torch.allclose(together, model.head(torch.stack([vectors[:2].mean(0), vectors[2]])), atol=1e-6)


def test_windows_are_the_superpatches_of_the_table(cohort, scans):
    table = evaluation_superpatches(scans.scans, 16, ORGANS, cohort["label_numbers"], 20)
    voxels, owner = Windows(scans.scans, None, table, 16).read([3, 0])
    assert owner.tolist() == [0, 1] and voxels.shape == (2, 1, 16, 16, 16)
    row = table.iloc[3]
    d, h, w = (int(row[f"start_{axis}"]) for axis in "dhw")
    hu = scans.scans.hu(int(row["scan"])).whole()[d : d + 16, h : h + 16, w : w + 16]
    there = np.clip((hu + 175.0) / 425.0, 0, 1)
    assert np.allclose(voxels[0, 0, : hu.shape[0], : hu.shape[1], : hu.shape[2]], there, atol=1e-6)
    # through a view of the same voxels nothing changes but where a superpatch is cut at the scan's end
    seen, whose = Windows(scans.scans, scans.scans, table, 16).read([0])
    assert torch.equal(seen[0], voxels[1]) and whose.tolist() == [0]


class Told:
    """A task whose looks say what they are told."""

    def __init__(self, looks):
        self.looks = iter(looks)

    def module(self):
        return torch.nn.Linear(1, 1)

    def sample(self, step):
        return torch.ones(1, 1)

    def loss(self, module, sample):
        return module(sample).square().mean()

    def validate(self, module):
        return next(self.looks)


@pytest.mark.parametrize(("looks", "taken"), [([math.nan, 0.4, 0.3], 2), ([0.4, 0.5, math.nan], 2), ([0.1, 0.2, 0.2], 3)])
def test_the_best_look_is_taken_and_one_that_says_nothing_has_no_say(tmp_path, looks, taken):
    recipe = Finetuning(steps=3, checks=3, learning_rates=[1e-3])
    tuned = Tuning(Told(looks), recipe, 3, True, 0, tmp_path / "state.pt", torch.device("cpu"), "32-true").run()
    assert tuned.step == taken and tuned.validation == looks[taken - 1]
    assert [(look.learning_rate, look.step) for look in tuned.looks] == [(1e-3, 1), (1e-3, 2), (1e-3, 3)]
    np.testing.assert_array_equal([look.validation for look in tuned.looks], looks)


def test_predictions_that_are_never_finite_are_told(tmp_path):
    recipe = Finetuning(steps=2, checks=2, learning_rates=[1e-3])
    with pytest.raises(NemesisError, match="gives finite figures"):
        Tuning(Told([math.nan] * 2), recipe, 2, True, 0, tmp_path / "state.pt", torch.device("cpu"), "32-true").run()


def test_crops_hold_the_labels_of_their_own_voxels(scans):
    for number in range(6):
        random = np.random.Generator(np.random.Philox(key=[1, number]))
        hu, classes = scans.crop(2, 1.0, random)
        assert hu.shape == classes.shape == (16, 16, 16) and classes.any(), "centred on a labelled voxel"
        whole, truth = scans.scans.hu(2).whole(), scans.truth(2)
        size = np.minimum(16, whole.shape)  # beyond it there is padding
        inside = tuple(slice(0, n) for n in size)
        found = []
        for start in np.ndindex(*(np.array(whole.shape) - size + 1)):
            box = tuple(slice(s, s + n) for s, n in zip(start, size, strict=True))
            if whole[box][0, 0, 0] == hu[0, 0, 0] and np.array_equal(whole[box], hu[inside]):
                found.append(np.array_equal(truth[box], classes[inside]))
        assert found == [True]


def test_a_view_of_the_same_grid_gives_the_same_crops(scans):
    seen = LabelledScans(scans.scans, scans.scans, scans.labelling, 16)
    for number in range(4):
        one, other = (s.crop(1, 0.5, np.random.Generator(np.random.Philox(key=[3, number]))) for s in (scans, seen))
        assert np.array_equal(one[0], other[0]) and np.array_equal(one[1], other[1])


def test_what_windows_say_is_put_together_on_the_whole_scan(scans):
    class Threshold(torch.nn.Module):
        def forward(self, voxels):
            return torch.cat([voxels - 0.5, 0.5 - voxels, voxels - 2.0], dim=1)

    task = SegmentationTask(
        Threshold, scans, [0], [1], 2, 0.5, 0.25, 0, torch.device("cpu"), "32-true"
    )  # fmt: skip
    masks = task.masks(Threshold(), 1)
    values = np.clip((scans.scans.hu(1).whole() + 175.0) / 425.0, 0, 1)
    assert np.array_equal(masks[0], values > 0.5) and np.array_equal(masks[1], values < 0.5) and not masks[2].any()


def test_costs_are_counted_by_hand():
    method = Segmenting(Settings(), 8)
    assert segmenter_macs(method, 3) == 8**3 * (27 * 6 + 27 * 6 * 6 + 6 * 3)
    assert matched_steps(300, pretraining=1000, of_step=10.0) == 400
    rows = {r["metric"]: r["value"] for r in cost_rows("pretrained", 10, 2, 5.0, 7.0, 100, "finetune")}
    assert rows == {
        "downstream_steps": 10, "downstream_trials": 2, "downstream_voxels": 70, "downstream_flop": 300,
        "pretraining_flop": 600,
    }  # fmt: skip
    assert "pretraining_flop" not in {r["metric"] for r in cost_rows("pretrained", 10, 2, 5.0, 7.0, None, "finetune")}


@pytest.mark.parametrize("name", ["suprem", "voco"])
def test_a_swin_unetr_is_counted_without_computing_it(name, monkeypatch):
    """Its constructor reads numbers, its forward pass does not: at 128³ that pass takes a CPU minutes and gigabytes."""
    devices = []

    def watched(call, network, voxels):
        devices.append(voxels.device.type)
        return by_torch(call, network, voxels)

    monkeypatch.setattr(downstream, "by_torch", watched)
    assert segmenter_macs(create(name, {"feature_size": 12}, 64), 3) > 0
    assert devices == ["meta"]


def test_what_published_weights_cost_is_not_taken_for_nothing():
    cost = MethodCost(encode=5, pretext=7, parameters=1, features=1)
    recipe = {"steps": 10, "batch_size": 4}
    assert pretraining_macs({"pretraining": recipe}, cost) == 10 * 4 * 7
    assert pretraining_macs({"pretraining": None}, cost) == 0
    assert pretraining_macs({"pretraining": None, "weights": {"file": "theirs.pt"}}, cost) is None


def test_the_mean_over_organs_weighs_every_organ_alike_and_differences_are_paired():
    run = pd.DataFrame([("a", "liver", 0.8), ("b", "liver", 0.6), ("a", "spleen", 0.2)], columns=["patient", "organ", "value"])
    estimate = mean_over_organs([run], resamples=100)
    assert estimate.point == pytest.approx((0.7 + 0.2) / 2) and estimate.n_patients == 2 and estimate.low is None
    many = pd.concat([run.assign(patient=run["patient"] + str(n)) for n in range(6)])
    better = many.assign(value=many["value"] + 0.1)
    gap = mean_over_organs([better], [many], resamples=200)
    assert gap.point == pytest.approx(0.1) and (gap.low, gap.high) == pytest.approx((0.1, 0.1)) and gap.p < 0.02
    with pytest.raises(ValueError, match="different patients"):
        mean_over_organs([many], [run])
