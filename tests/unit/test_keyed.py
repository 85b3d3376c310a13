"""Random numbers depend on (seed, step, sample) alone."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from nemesis.models.keyed import Keys, seed_at


@given(st.integers(0, 2**40), st.integers(0, 2**31), st.lists(st.integers(0, 2**31), min_size=2, max_size=6, unique=True))
def test_a_sample_is_the_same_in_any_batch(seed, step, index):
    whole = Keys.at(seed, step, index).uniform("mask", 64)
    alone = torch.cat([Keys.at(seed, step, [i]).uniform("mask", 64) for i in reversed(index)]).flip(0)
    assert torch.equal(whole, alone)
    assert not torch.equal(whole[0], whole[1])


def test_seed_step_and_stream_each_change_every_number():
    base = Keys.at(1, 2, [3]).uniform("mask", 256)
    for other in (
        Keys.at(0, 2, [3]).uniform("mask", 256),
        Keys.at(1, 3, [3]).uniform("mask", 256),
        Keys.at(1, 2, [3]).uniform("noise", 256),
    ):
        assert (base == other).float().mean() < 0.02


def test_uniform_numbers_are_uniform_and_uncorrelated():
    numbers = Keys.at(0, 0, range(64)).uniform("mask", 4096)
    assert numbers.min() >= 0 and numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.003
    assert (torch.histc(numbers, 16, 0, 1) / numbers.numel() - 1 / 16).abs().max() < 0.002
    centred = numbers - 0.5
    assert (centred[:, 1:] * centred[:, :-1]).mean().abs() < 0.001  # neighbours in a sample
    assert (centred[1:] * centred[:-1]).mean().abs() < 0.001  # neighbouring samples


def test_normal_numbers_have_the_moments_of_the_normal():
    numbers = Keys.at(5, 1, range(32)).normal("noise", 8192)
    assert torch.isfinite(numbers).all()
    assert abs(numbers.mean()) < 0.01
    assert abs(numbers.std() - 1) < 0.01
    assert abs((numbers**4).mean() - 3) < 0.1


def test_batch_choice_takes_every_option_about_equally_often():
    counts = torch.bincount(torch.tensor([Keys.at(0, step, [0]).batch_choice("level", 4) for step in range(4000)]), minlength=4)
    assert counts.min() > 900


def test_generator_seeds_differ_by_rank_and_step():
    assert len({seed_at(0, step, rank) for step in range(50) for rank in range(4)}) == 200
