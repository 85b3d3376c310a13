"""The learning rate is a function of the step."""

from itertools import pairwise

import pytest

from nemesis.training.schedule import learning_rate


def test_warm_up_peak_and_floor():
    rates = [learning_rate(step, 100, 10, 1e-3, 1e-6) for step in range(100)]
    assert rates[:10] == pytest.approx([1e-3 * (i + 1) / 10 for i in range(10)])
    assert max(rates) == pytest.approx(1e-3)
    assert rates[-1] == pytest.approx(1e-6)
    assert all(a >= b for a, b in pairwise(rates[10:]))


def test_half_way_down_the_cosine_is_half_the_rate():
    assert learning_rate(50, 101, 0, 2.0, 0.0) == pytest.approx(1.0)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (2, 2)])
def test_tiny_trainings_have_a_rate(steps, warmup):
    assert all(learning_rate(step, steps, warmup, 1.0, 0.1) > 0 for step in range(steps))
