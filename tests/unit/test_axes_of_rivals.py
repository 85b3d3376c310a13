"""Rivals that work along (right, anterior, superior) get voxels so, and give maps back on the house's axes and grid."""

import nibabel
import pytest
import torch
from torch import nn

from baselines.networks.augment import Moves, draw_moves, shifted
from baselines.networks.ras import HouseAxes, enlarged, to_house, to_ras
from nemesis.data.phantom import LIVER, SPLEEN, STOMACH, make_subject
from nemesis.models.keyed import Keys


@pytest.fixture(scope="module")
def subject():
    return make_subject(3, 0, 8.0)


def test_the_published_axes_are_those_of_a_ras_image(subject):
    ras = torch.from_numpy(subject.hu.transpose(1, 2, 0).copy())
    assert nibabel.aff2axcodes(subject.affine) == ("R", "A", "S")
    house = torch.from_numpy(subject.hu)[None, None]
    assert torch.equal(to_ras(house)[0, 0], ras)
    assert torch.equal(to_house(to_ras(house)), house)


def test_a_network_sees_the_liver_to_the_right_and_the_stomach_in_front_and_maps_come_back(subject):
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append(x)
            return x

    labels = torch.from_numpy(subject.labels)[None, None]
    organs = torch.cat([(labels == organ).float() for organ in (LIVER, SPLEEN, STOMACH)], 1)
    answer = HouseAxes(Spy(), 1, 1)(organs)
    liver, spleen, _ = ((seen[0][0, k] > 0).nonzero().float().mean(0) for k in range(3))
    assert liver[0] > spleen[0] + 5  # the first axis runs to the right
    kidneys = to_ras((labels == 2) | (labels == 3))[0, 0].nonzero().float().mean(0)
    assert liver[1] > kidneys[1] + 2  # the second to the front
    lowest = to_ras(labels > 0)[0, 0].nonzero().float()[:, 2].min()
    assert seen[0].shape[4] == labels.shape[2] and lowest < liver[2]  # the third upwards
    assert torch.equal(answer, organs)  # every voxel where it was


def test_logits_of_a_superpatch_that_was_resized_up_lie_where_they_lay():
    corner = torch.zeros(1, 1, 16, 16, 16)
    corner[:, :, 10:14, 2:6, 8:12] = 1  # another place along each axis
    answer = HouseAxes(nn.Identity(), 64, 32)(corner)
    assert answer.shape == corner.shape
    assert torch.equal(answer > 0.5, corner > 0.5)


def test_superpatches_are_resized_up_to_what_a_network_takes():
    sizes = {16: 64, 32: 64, 64: 64, 65: 96, 96: 96, 128: 128}
    for edge, expected in sizes.items():
        assert enlarged(torch.rand(1, 1, edge, edge, edge), 64, 32).shape[2:] == (expected,) * 3
    voxels = torch.rand(1, 1, 64, 64, 64)
    assert enlarged(voxels, 64, 32) is voxels


def test_moves_are_those_of_each_crop_alone():
    crops = torch.rand(4, 1, 3, 5, 5)
    flips = torch.tensor([[0, 0, 0], [1, 0, 1], [0, 0, 0], [0, 1, 0]], dtype=torch.bool)
    moved = Moves(flips, torch.tensor([0, 0, 3, 1]))(crops)
    assert torch.equal(moved[0], crops[0])
    assert torch.equal(moved[1], crops[1].flip(1, 3))
    assert torch.equal(moved[2], torch.rot90(crops[2], 3, (2, 3)))
    assert torch.equal(moved[3], torch.rot90(crops[3].flip(2), 1, (2, 3)))


def test_moves_and_shifts_come_as_often_as_they_should_and_from_the_keys():
    keys = Keys.at(0, 3, range(500))
    moves = draw_moves(keys, 4, 0.2, 0.2)
    assert moves.flips.float().mean(0) == pytest.approx([0.2] * 3, abs=0.03)
    assert [(moves.turns == q).float().mean() for q in range(4)] == pytest.approx([0.8, *[0.2 / 3] * 3], abs=0.03)
    alone = draw_moves(Keys.at(0, 3, [7]), 4, 0.2, 0.2)
    assert torch.equal(alone.flips, moves.flips[28:32]) and torch.equal(alone.turns, moves.turns[28:32])
    by = shifted(torch.zeros(2000, 1, 1, 1, 1), keys, 4, 0.1, 0.1).flatten()
    assert (by != 0).float().mean() == pytest.approx(0.1, abs=0.02)
    assert by.abs().max() <= 0.1 and by.min() < -0.05 and by.max() > 0.05
