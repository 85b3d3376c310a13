"""Dice and cross-entropy by hand: absent and unknown classes, several resolutions, gradients."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nemesis.evaluation.segmentation import dice_bce


def logit(probability):
    return math.log(probability / (1 - probability))


def line(*values):
    """One sample whose volume is a line of voxels."""
    return torch.tensor(values, dtype=torch.uint8).view(1, 1, 1, 1, -1)


def logits_of(*rows):
    """Logits of one sample from probabilities, a row per class."""
    return torch.tensor([[logit(p) for p in row] for row in rows], dtype=torch.float32).view(1, len(rows), 1, 1, -1)


def known(*flags):
    return torch.tensor([flags], dtype=torch.bool)


def test_one_class_by_hand():
    loss = dice_bce(logits_of([0.8, 0.4, 0.2, 0.1]), line(1, 1, 0, 0), known(True))
    dice = (2 * (0.8 + 0.4) + 1) / (1.5 + 2 + 1)
    entropy = -(math.log(0.8) + math.log(0.4) + math.log(0.8) + math.log(0.9)) / 4
    assert loss.item() == pytest.approx(1 - dice + entropy, rel=1e-6)
    assert loss.item() == pytest.approx(0.2444444 + 0.3669846, abs=1e-6)  # the same, worked out on paper


def test_dice_is_over_classes_that_are_present_and_entropy_over_all_known():
    first, absent = [0.5, 0.5], [0.25, 0.25]
    loss = dice_bce(logits_of(first, absent), line(1, 0), known(True, True))
    entropy = (-math.log(0.5) - math.log(0.75)) / 2
    assert loss.item() == pytest.approx(1 - (2 * 0.5 + 1) / (1 + 1 + 1) + entropy, rel=1e-6)


def test_an_unknown_class_adds_nothing_and_gets_no_gradient():
    one = dice_bce(logits_of([0.7, 0.2]), line(1, 0), known(True))
    logits = logits_of([0.7, 0.2], [0.9, 0.9]).requires_grad_()
    two = dice_bce(logits, line(1, 0), known(True, False))
    two.backward()
    assert two.item() == pytest.approx(one.item(), rel=1e-6)
    assert logits.grad[0, 0].abs().min() > 0
    assert not logits.grad[0, 1].any()


def test_where_nothing_is_known_the_loss_is_zero_and_still_has_a_graph():
    logits = logits_of([0.7, 0.2]).requires_grad_()
    loss = dice_bce(logits, line(1, 0), known(False))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_samples_are_weighed_by_what_is_known_of_them():
    logits = torch.cat([logits_of([0.9, 0.1], [0.3, 0.3]), logits_of([0.6, 0.6], [0.3, 0.3])])
    classes = torch.cat([line(1, 0), line(0, 0)])
    loss = dice_bce(logits, classes, torch.tensor([[True, False], [True, True]]))
    entropies = [-math.log(0.9), -math.log(0.4), -math.log(0.7)]  # sample 1 class 1; sample 2 classes 1 and 2
    dice = (2 * 0.9 + 1) / (1.0 + 1 + 1)
    assert loss.item() == pytest.approx(1 - dice + sum(entropies) / 3, rel=1e-6)


def test_resolutions_weigh_one_half_quarter():
    classes = torch.zeros(1, 1, 8, 8, 8, dtype=torch.uint8)
    classes[:, :, 4:] = 1
    probabilities = (0.9, 0.6, 0.3)
    levels = [torch.full((1, 1, n, n, n), logit(p)) for n, p in zip((8, 4, 2), probabilities, strict=True)]
    alone = []
    for n, p in zip((512, 64, 8), probabilities, strict=True):
        dice = (2 * p * n / 2 + 1) / (p * n + n / 2 + 1)
        alone.append(1 - dice - (math.log(p) + math.log(1 - p)) / 2)
    expected = (alone[0] + alone[1] / 2 + alone[2] / 4) / 1.75
    assert dice_bce(levels, classes, known(True)).item() == pytest.approx(expected, rel=1e-5)


def test_classes_are_taken_at_the_middle_of_coarse_voxels():
    coarse = logits_of([0.99, 0.01])
    right, wrong = line(0, 1, 0, 0), line(0, 0, 1, 0)  # the second of each two voxels counts
    assert dice_bce([coarse], right, known(True)) < 0.1
    assert dice_bce([coarse], wrong, known(True)) > dice_bce([coarse], right, known(True))


@given(seed=st.integers(0, 2**16), absent=st.sampled_from([1, 2, 3]))
def test_is_never_negative_and_falls_to_nothing_for_what_is_right(seed, absent):
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(0, 4, (2, 1, 4, 4, 4), generator=generator, dtype=torch.uint8)
    classes[classes == absent] = 0
    all_known = torch.ones(2, 3, dtype=torch.bool)
    one_hot = classes == torch.arange(1, 4).view(1, 3, 1, 1, 1)
    right = torch.where(one_hot, 30.0, -30.0)
    assert 0 <= dice_bce(right, classes, all_known) < 1e-5
    assert dice_bce(-right, classes, all_known) > 10
    assert dice_bce(torch.randn(2, 3, 4, 4, 4, generator=generator), classes, all_known) >= 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_full(dtype):
    logits = torch.full((1, 1, 64, 64, 64), 10.0, dtype=dtype)  # 262,144 voxels: beyond the largest half
    assert dice_bce(logits, torch.ones(1, 1, 64, 64, 64, dtype=torch.uint8), known(True)).item() == pytest.approx(0, abs=1e-3)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="subsampled"):
        dice_bce(torch.zeros(1, 1, 3, 3, 3), torch.zeros(1, 1, 4, 4, 4, dtype=torch.uint8), known(True))
    with pytest.raises(ValueError, match="known"):
        dice_bce(torch.zeros(1, 2, 4, 4, 4), torch.zeros(1, 1, 4, 4, 4, dtype=torch.uint8), known(True))
