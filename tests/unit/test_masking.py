"""Masks hide exactly what they say, keep a regular grid, and are functions of their scores."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nemesis.models.keyed import Keys
from nemesis.models.masking import nothing_masked, plane_axis_mask, visible_count

sizes = st.tuples(st.integers(2, 8), st.integers(1, 6), st.integers(1, 6)).filter(lambda g: g[1] * g[2] > 1)
ratios = st.floats(0, 0.95)


@given(sizes, ratios, ratios, st.sampled_from(["random", "contiguous"]), st.integers(0, 1000))
def test_counts_are_exact_and_tokens_keep_a_grid(grid, plane, axis, strategy, seed):
    slices, columns = grid[0], grid[1] * grid[2]
    mask = plane_axis_mask(grid, plane, axis, Keys.at(seed, 0, range(3)).uniform("mask", slices * columns), strategy)
    n_slices, n_columns = visible_count(slices, axis), visible_count(columns, plane)
    assert mask.keep.shape == (3, n_slices, n_columns)
    assert mask.hidden.float().mean().item() == pytest.approx(1 - n_slices * n_columns / (slices * columns), abs=1e-6)
    for keep, hidden in zip(mask.keep, mask.hidden, strict=True):
        assert torch.equal(keep.flatten().sort().values, keep.flatten())  # visible tokens stay in token order
        assert not hidden[keep.flatten()].any()
        assert hidden.sum() == slices * columns - keep.numel()
        assert (keep % columns == keep[0] % columns).all()  # the l-th tokens of all slices are one column
        assert (keep // columns == (keep[:, :1] // columns)).all()  # a row of the grid lies in one slice


@given(st.integers(2, 12), st.floats(0.1, 0.9), st.integers(0, 100))
def test_contiguous_slices_are_one_block(slices, ratio, seed):
    mask = plane_axis_mask((slices, 2, 2), 0.0, ratio, Keys.at(seed, 0, [0]).uniform("mask", slices * 4), "contiguous")
    hidden = mask.hidden.view(slices, 4).all(dim=1).int()
    assert hidden.sum() == slices - visible_count(slices, ratio)
    assert (hidden[1:] - hidden[:-1]).clamp(min=0).sum() + hidden[0] <= 1  # it starts at most once


@pytest.mark.parametrize("strategy", ["random", "contiguous"])
def test_every_column_and_slice_is_hidden_equally_often(strategy):
    scores = Keys.at(0, 0, range(8000)).uniform("mask", 8 * 16)
    visible = ~plane_axis_mask((8, 4, 4), 0.5, 0.0, scores, strategy).hidden.view(-1, 8, 16)
    assert (visible[:, 0].float().mean(0) - 0.5).abs().max() < 0.03
    visible = ~plane_axis_mask((8, 4, 4), 0.0, 0.5, scores, "random").hidden.view(-1, 8, 16)
    assert (visible[:, :, 0].float().mean(0) - 0.5).abs().max() < 0.03
    both = ~plane_axis_mask((8, 4, 4), 0.5, 0.5, scores, "random").hidden.view(-1, 8, 16)
    assert (both.float().mean(0) - 0.25).abs().max() < 0.03  # columns and slices are drawn independently


def test_a_sample_s_mask_depends_on_its_own_scores_only():
    scores = Keys.at(0, 0, range(4)).uniform("mask", 64)
    whole = plane_axis_mask((4, 4, 4), 0.5, 0.5, scores)
    for i in range(4):
        assert torch.equal(whole.hidden[i : i + 1], plane_axis_mask((4, 4, 4), 0.5, 0.5, scores[i : i + 1]).hidden)


def test_nothing_masked_keeps_every_token_in_order():
    mask = nothing_masked((2, 3, 4), 2, torch.device("cpu"))
    assert torch.equal(mask.keep[1].flatten(), torch.arange(24))
    assert not mask.hidden.any()


def test_scores_of_another_grid_are_refused():
    with pytest.raises(ValueError, match="scores must be"):
        plane_axis_mask((2, 2, 2), 0.5, 0.5, torch.rand(1, 9))


def test_visible_count_rounds_down_but_keeps_one():
    assert [visible_count(10, 0.1), visible_count(64, 0.5), visible_count(7, 0.5), visible_count(4, 0.99)] == [
        9,
        32,
        3,
        1,
    ]
