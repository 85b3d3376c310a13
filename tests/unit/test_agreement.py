"""Overlap and surface distances against definitions written out, and against MONAI's whole metrics."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist

from nemesis.evaluation.agreement import agreement, dice

SPACING = (4.0, 1.5, 0.7)  # mm along D, H, W


def surface(mask):
    """Centres (n, 3) in mm of the voxels with a neighbour by a face outside the mask."""
    padded = np.pad(mask, 1)
    inner = padded[1:-1, 1:-1, 1:-1].copy()
    for axis in range(3):
        for shift in (1, -1):
            inner &= np.roll(padded, shift, axis)[1:-1, 1:-1, 1:-1]
    return np.argwhere(mask & ~inner) * SPACING


def by_pairs(mask, truth, tolerance):
    """From all pairs of the two surfaces' voxels."""
    pairs = cdist(surface(mask), surface(truth))
    to_truth, to_mask = pairs.min(1), pairs.min(0)
    hd95 = max(np.percentile(to_truth, 95), np.percentile(to_mask, 95))
    return hd95, (np.count_nonzero(to_truth < tolerance + 1e-6) + np.count_nonzero(to_mask < tolerance + 1e-6)) / sum(pairs.shape)


def blob(seed, level):
    """A smooth random shape that may touch the border, and of several pieces."""
    return gaussian_filter(np.random.default_rng(seed).normal(size=(9, 14, 17)), 1.5) > level


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6), st.floats(-0.1, 0.15), st.floats(0.0, 6.0))
def test_distances_are_those_of_all_pairs_of_surface_voxels_in_mm(one, other, level, tolerance):
    mask, truth = blob(one, level), blob(other, level)
    if not mask.any() or not truth.any():
        return
    found = agreement(mask, truth, SPACING, tolerance)
    hd95, share = by_pairs(mask, truth, tolerance)
    assert found["hd95"] == pytest.approx(hd95, rel=1e-5)
    assert found["surface_dice"] == pytest.approx(share, abs=1e-9)
    assert found["dice"] == pytest.approx(2 * (mask & truth).sum() / (mask.sum() + truth.sum()))


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # MONAI's own use of it
@pytest.mark.parametrize("seed", range(5))
def test_the_figures_are_those_of_monai(seed):
    mask, truth = blob(seed, 0.05), blob(seed + 100, 0.05)
    found = agreement(mask, truth, SPACING, 1.6)
    one, other = (torch.from_numpy(m)[None, None].float() for m in (mask, truth))
    theirs = {"include_background": True, "spacing": SPACING}
    assert found["hd95"] == pytest.approx(compute_hausdorff_distance(one, other, percentile=95, **theirs).item(), rel=1e-5)
    assert found["surface_dice"] == pytest.approx(compute_surface_dice(one, other, [1.6], **theirs).item(), abs=1e-6)


def test_distances_follow_the_axis_they_lie_along():
    truth, shifted = np.zeros((8, 8, 8), bool), {}
    truth[3, 3, 3] = True  # a single voxel is its own surface
    for axis, apart in enumerate(SPACING):
        mask = np.roll(truth, 2, axis)
        shifted[axis] = agreement(mask, truth, SPACING, tolerance=1.4)
        assert shifted[axis]["hd95"] == pytest.approx(2 * apart) and shifted[axis]["dice"] == 0.0
    assert [shifted[axis]["surface_dice"] for axis in range(3)] == [0.0, 0.0, 1.0]


def test_what_equals_the_truth_is_at_no_distance_from_it():
    whole = np.ones((4, 5, 6), bool)  # of a scan that an organ fills, the border is the surface
    for mask in (blob(3, 0.0), whole):
        assert agreement(mask, mask.copy(), SPACING, 0.0) == {"dice": 1.0, "hd95": 0.0, "surface_dice": 1.0}


def test_an_organ_that_is_missed_has_no_distance_and_no_surface_in_common():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = agreement(np.zeros((9, 14, 17), bool), blob(3, 0.0), SPACING, 1e9)
    assert found == {"dice": 0.0, "hd95": None, "surface_dice": 0.0}


def test_dice_by_hand():
    truth = np.zeros((2, 3, 4), np.uint8)
    truth[0, 0, :] = 1  # 4 voxels
    truth[1, 1, :2] = 2  # 2 voxels
    masks = np.zeros((3, 2, 3, 4), bool)
    masks[0, 0, 0, 2:] = True  # 2 of them
    masks[0, 1, 2, 0] = True  # and a wrong one: 2 · 2 / (3 + 4)
    masks[2] = True
    assert dice(masks, truth)[:2].tolist() == pytest.approx([4 / 7, 0.0])
    assert np.isnan(dice(masks, truth)[2]), "an organ that is not there has no Dice"
