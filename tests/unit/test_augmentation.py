"""Random changes of crops are a function of seed, step and place in the batch."""

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nemesis.config import Augmentation
from nemesis.models.keyed import Keys
from nemesis.training.augmentation import Moves, draw_moves, shifted

ALL = Augmentation(flip=0.5, rotate=0.5, shift=0.5)


def batch(count, edge=4):
    return torch.rand(count, 1, edge, edge, edge, generator=torch.Generator().manual_seed(count))


@given(seed=st.integers(0, 2**62), step=st.integers(0, 10**6), ranks=st.sampled_from([2, 3]))
def test_ranks_change_nothing(seed, step, ranks):
    voxels = batch(6)
    keys = Keys.at(seed, step, range(6))
    whole = shifted(draw_moves(keys, ALL)(voxels), keys, ALL)
    for rank in range(ranks):
        places = list(range(rank, 6, ranks))
        own = Keys.at(seed, step, places)
        assert torch.equal(shifted(draw_moves(own, ALL)(voxels[places]), own, ALL), whole[places])


def test_every_orientation_of_the_plane_and_the_axis_comes_and_no_other():
    voxels = batch(1, 3)
    seen = {tuple(draw_moves(Keys.at(0, step, [0]), ALL)(voxels).flatten().tolist()) for step in range(600)}
    possible = set()
    for turns, flips in product(range(4), product((0, 1), repeat=3)):
        moved = torch.rot90(voxels, turns, (3, 4)).flip([axis for axis, yes in zip((2, 3, 4), flips, strict=True) if yes])
        possible.add(tuple(moved.flatten().tolist()))
    assert seen == possible and len(possible) == 16


def test_a_mask_moves_with_its_crop():
    voxels = batch(8)
    moves = draw_moves(Keys.at(1, 2, range(8)), ALL)
    assert torch.equal(moves((voxels > 0.5).to(torch.uint8)), (moves(voxels) > 0.5).to(torch.uint8))
    assert not torch.equal(moves(voxels), voxels)


@pytest.mark.parametrize("name", ["flip", "rotate", "shift"])
def test_probabilities_are_those_asked_for(name):
    count = 4000
    keys, voxels = Keys.at(3, 1, range(count)), batch(1, 2).expand(count, 1, 2, 2, 2)
    for probability in (0.0, 0.3, 1.0):
        settings = Augmentation(**{name: probability})
        moves = draw_moves(keys, settings)
        changed = {
            "flip": [3 in axes for axes in moves.flips],
            "rotate": [turns != 0 for turns in moves.turns],
            "shift": (shifted(voxels, keys, settings) != voxels).flatten(1).any(1).tolist(),
        }
        assert sum(changed.pop(name)) / count == pytest.approx(probability, abs=0.03)
        assert not any(any(other) for other in changed.values())


def test_shifts_stay_within_their_size_and_the_unit_interval():
    keys, voxels = Keys.at(5, 0, range(300)), torch.full((300, 1, 2, 2, 2), 0.5)
    by = (shifted(voxels, keys, Augmentation(shift=1.0, shift_size=0.2)) - 0.5).amax((1, 2, 3, 4))
    assert by.abs().max() <= 0.2 and by.min() < -0.15 and by.max() > 0.15
    ends = shifted(
        torch.tensor([0.0, 1.0]).view(1, 1, 1, 1, 2).expand(300, 1, 1, 1, 2), keys, Augmentation(shift=1, shift_size=1)
    )
    assert ends.min() == 0 and ends.max() == 1


def test_nothing_asked_for_is_nothing_done():
    voxels, keys = batch(4), Keys.at(0, 0, range(4))
    assert draw_moves(keys, Augmentation())(voxels) is voxels and shifted(voxels, keys, Augmentation()) is voxels
    assert Moves([[2], []], [0, 1])(voxels[:2]).shape == (2, 1, 4, 4, 4)
