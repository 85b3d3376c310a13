"""Masks hide exactly what they say, keep a regular grid, and are functions of their scores."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nemesis.models.keyed import Keys
from nemesis.models.masking import Masking, draw_mask, mask_of, nothing_masked, visible_count

sizes = st.tuples(st.integers(2, 8), st.integers(1, 6), st.integers(1, 6)).filter(lambda g: g[1] * g[2] > 1)
ratios = st.floats(0, 0.95)
strategies = st.builds(
    Masking,
    st.sampled_from(["columns", "per_slice", "thinned", "uniform"]),
    st.sampled_from(["random", "contiguous"]),
    ratios,
    ratios,
)


def scores(grid, seed=0, step=0, index=range(3)):
    return Keys.at(seed, step, index).uniform("mask", math.prod(grid))


@given(sizes, strategies, st.integers(0, 1000))
def test_every_strategy_hides_the_effective_ratio_it_says(grid, masking, seed):
    slices, columns = grid[0], grid[1] * grid[2]
    mask = draw_mask(grid, masking, scores(grid, seed))
    assert mask.keep.shape == (3, *masking.visible(grid))
    assert mask.hidden.float().mean().item() == pytest.approx(masking.hidden_share(grid), abs=1e-6)
    for keep, hidden in zip(mask.keep, mask.hidden, strict=True):
        assert torch.equal(keep.flatten().unique(), keep.flatten())  # visible tokens stay in token order, each once
        assert hidden.sum() == slices * columns - keep.numel() and not hidden[keep.flatten()].any()
        if masking.plane != "uniform":
            assert (keep // columns == (keep[:, :1] // columns)).all()  # a row of the grid lies in one slice
        if masking.plane == "columns":
            assert (keep % columns == keep[0] % columns).all()  # the l-th tokens of all slices are one column
        if masking.plane == "thinned":
            assert len((keep % columns).unique()) <= visible_count(columns, masking.plane_ratio)


@pytest.mark.parametrize(
    ("grid", "masking", "share"),
    [
        ((16, 16, 16), Masking("columns"), 0.75),
        ((16, 16, 16), Masking("thinned", "random", 0.25, 0.25), 0.4375),
        ((16, 16, 16), Masking("thinned", "random", 0.75, 0.75), 0.9375),
        ((5, 3, 3), Masking("columns"), 37 / 45),  # 2 of 5 slices × 4 of 9 columns stay
        ((5, 3, 3), Masking("per_slice", "contiguous"), 37 / 45),
        ((5, 3, 3), Masking("uniform"), 37 / 45),
        ((5, 3, 5), Masking("thinned", "random", 0.5, 0.2), 10 / 15),  # 5 of 7 of 15 columns stay in every slice, not 6 of 15
        ((2, 2, 2), Masking("columns", "random", 0.9, 0.9), 7 / 8),  # one token stays
        ((2, 2, 2), Masking("thinned", "random", 0.9, 0.9), 6 / 8),
    ],
)
def test_hidden_share_is_that_of_the_masks(grid, masking, share):
    assert masking.hidden_share(grid) == pytest.approx(share)
    assert draw_mask(grid, masking, scores(grid)).hidden.float().mean(1).tolist() == pytest.approx([share] * 3)


@given(sizes, strategies, st.integers(0, 100))
def test_masks_hide_the_nominal_share_or_more(grid, masking, seed):
    hidden = draw_mask(grid, masking, scores(grid, seed)).hidden.float().mean(1)
    assert hidden.tolist() == pytest.approx([masking.hidden_share(grid)] * 3)
    if min(masking.visible(grid)) > 1:  # one stays whatever the ratio
        assert hidden.min() > 1 - (1 - masking.plane_ratio) * (1 - masking.axis_ratio) - 1e-6


@given(st.integers(2, 12), st.floats(0.1, 0.9), st.integers(0, 100), st.sampled_from(["columns", "per_slice"]))
def test_contiguous_slices_are_one_block(slices, ratio, seed, plane):
    grid = (slices, 2, 2)
    mask = draw_mask(grid, Masking(plane, "contiguous", 0.0, ratio), scores(grid, seed, index=[0]))
    hidden = mask.hidden.view(slices, 4).all(dim=1).int()
    assert hidden.sum() == slices - visible_count(slices, ratio)
    assert (hidden[1:] - hidden[:-1]).clamp(min=0).sum() + hidden[0] <= 1  # it starts at most once


@pytest.mark.parametrize("plane", ["columns", "per_slice", "thinned", "uniform"])
def test_every_token_is_hidden_equally_often(plane):
    grid = (8, 4, 4)
    visible = ~draw_mask(grid, Masking(plane), scores(grid, index=range(8000))).hidden
    assert (visible.float().mean(0) - 0.25).abs().max() < 0.03


def test_slices_thin_out_each_in_its_own_way():
    grid = (8, 4, 4)
    for plane in ("per_slice", "thinned"):
        kept = draw_mask(grid, Masking(plane, "random", 0.5, 0.25), scores(grid)).keep % 16
        assert any(not torch.equal(kept[0, 0], row) for row in kept[0, 1:])


def test_two_slices_thin_out_independently():
    grid = (2, 4, 4)
    visible = ~draw_mask(grid, Masking("thinned"), scores(grid, index=range(4000))).hidden.view(-1, 2, 16)
    assert (visible.sum(2) == 4).all()
    both = visible.all(1).sum(1).float()  # 4 and 4 of the same 8 columns
    assert both.mean().item() == pytest.approx(2.0, abs=0.1) and both.var().item() == pytest.approx(4 / 7, abs=0.1)


@pytest.mark.parametrize("fixed", [0, 1, 2])
def test_no_slice_alone_says_which_columns_are_thinned(fixed):
    grid = (3, 4, 4)
    table = scores(grid, index=range(20)).view(20, 3, 16)
    table[:, fixed] = table[0, fixed]
    visible = ~draw_mask(grid, Masking("thinned", "random", 0.5, 0.0), table.flatten(1)).hidden.view(20, 3, 16)
    assert (visible == visible[:, :1]).all()  # nothing is lost of the columns
    assert len({tuple(row) for row in visible[:, 0].tolist()}) > 15


@given(
    st.integers(0, 2**40), st.integers(0, 10**6), st.lists(st.integers(0, 10**6), min_size=2, max_size=5, unique=True), strategies
)
def test_a_mask_depends_on_seed_step_and_global_index_only(seed, step, index, masking):
    grid = (4, 3, 5)
    together = draw_mask(grid, masking, scores(grid, seed, step, index)).hidden
    for place, number in enumerate(index):  # on another rank, alone, in another order
        assert torch.equal(together[place], draw_mask(grid, masking, scores(grid, seed, step, [number])).hidden[0])


def test_other_keys_give_other_masks():
    grid = (8, 8, 8)
    one = draw_mask(grid, Masking(), scores(grid)).hidden
    for other in (scores(grid, seed=1), scores(grid, step=1), scores(grid, index=range(3, 6))):
        assert not torch.equal(one, draw_mask(grid, Masking(), other).hidden)


@given(sizes, strategies)
def test_an_explicit_mask_is_taken_as_it_is(grid, masking):
    drawn = draw_mask(grid, masking, scores(grid))
    again = mask_of(drawn.hidden, grid, masking.visible(grid) if masking.plane == "uniform" else None)
    assert torch.equal(again.keep, drawn.keep) and torch.equal(again.hidden, drawn.hidden)


def test_an_explicit_mask_that_is_no_grid_is_refused():
    hidden = torch.zeros(1, 8, dtype=torch.bool)
    hidden[0, 0] = True
    with pytest.raises(ValueError, match="equally many tokens"):
        mask_of(hidden, (2, 2, 2))
    with pytest.raises(ValueError, match="equally many tokens"):
        mask_of(torch.ones(1, 8, dtype=torch.bool), (2, 2, 2))
    with pytest.raises(ValueError, match="a mask is bool"):
        mask_of(hidden.int(), (2, 2, 2))


def test_nothing_masked_keeps_every_token_in_order():
    mask = nothing_masked((2, 3, 4), 2, torch.device("cpu"))
    assert torch.equal(mask.keep[1].flatten(), torch.arange(24))
    assert not mask.hidden.any()


@pytest.mark.parametrize("ratio", [-0.5, 1.0, float("nan")])
def test_ratios_lie_between_0_and_1(ratio):
    with pytest.raises(ValueError, match=r"not in \[0, 1\)"):
        Masking(plane_ratio=ratio)


def test_scores_of_another_grid_are_refused():
    with pytest.raises(ValueError, match="scores must be"):
        draw_mask((2, 2, 2), Masking(), torch.rand(1, 9))


def test_visible_count_rounds_down_but_keeps_one():
    assert [visible_count(10, 0.1), visible_count(64, 0.5), visible_count(7, 0.5), visible_count(4, 0.99)] == [9, 32, 3, 1]
