import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_scans import blobs, store_scans

from nemesis.config import Preparation
from nemesis.data.foreground import MAP_EDGE, BlockSums, bounds, foreground, grid, map_shape
from nemesis.data.store import AIR, StoredVolume, normalise, pad
from nemesis.data.superpatches import draw_crop

SHAPES = st.tuples(*[st.integers(1, 40)] * 3)
WINDOW = (-175.0, 250.0)


def noise(shape, seed, low=-300, high=300):
    return np.random.default_rng(seed).integers(low, high, shape).astype(np.int16)


@given(shape=SHAPES, edge=st.integers(1, 17))
def test_the_grid_tiles_the_volume_exactly_once(shape, edge):
    times = np.zeros(shape, int)
    starts = grid(shape, edge)
    for d, h, w in starts:
        times[d : d + edge, h : h + edge, w : w + edge] += 1
    assert (times == 1).all()
    assert len(starts) == math.prod(-(-n // edge) for n in shape)


@given(low=st.integers(-2000, 0), width=st.integers(1, 40000), seed=st.integers(0, 99))
def test_foreground_is_the_mean_after_windowing(low, width, seed):
    hu = np.random.default_rng(seed).integers(-32768, 32767, (5, 6, 7), dtype=np.int16)
    window = (float(low), float(min(low + width, 32767)))
    assert foreground(hu, window) == pytest.approx(normalise(hu, window).mean(dtype=float), abs=1e-6)


@given(shape=st.tuples(*[st.integers(1, 14)] * 3), edge=st.integers(3, 17), seed=st.integers(0, 99))
def test_grid_foreground_leaves_padding_out(shape, edge, seed):
    hu = noise(shape, seed)
    expected = [foreground(hu[d : d + edge, h : h + edge, w : w + edge], WINDOW) for d, h, w in grid(shape, edge)]
    np.testing.assert_array_equal(BlockSums(hu, WINDOW).grid_foreground(edge), expected)


@given(shape=SHAPES, edges=st.lists(st.sampled_from([1, 2, 3, 4, 8, 16, 24]), min_size=2, max_size=5), seed=st.integers(0, 99))
def test_sums_of_nested_cubes_are_those_of_the_voxels(shape, edges, seed):
    hu = noise(shape, seed, -32768, 32767)
    nested = BlockSums(hu, (-1e5, 1e5))
    for edge in edges:
        np.testing.assert_array_equal(nested.of(edge), BlockSums(hu, (-1e5, 1e5)).of(edge))
        boxes = [hu[d : d + edge, h : h + edge, w : w + edge].astype(int) + 32768 for d, h, w in grid(shape, edge)]
        np.testing.assert_array_equal(nested.of(edge).ravel(), [box.sum() for box in boxes])


@settings(deadline=None)
@given(shape=SHAPES, edge=st.sampled_from([5, 8, 16, 32]), seed=st.integers(0, 99))
def test_brightest_is_the_best_of_its_lattice(shape, edge, seed):
    hu = noise(shape, seed)
    start, share = BlockSums(hu, WINDOW).brightest(edge)
    crop = hu[tuple(slice(s, s + edge) for s in start)]
    assert crop.shape == tuple(min(edge, n) for n in shape)
    assert foreground(crop, WINDOW) == share
    step = max(n for n in range(1, max(1, edge // 8) + 1) if edge % n == 0)
    lattice = [range(0, max(1, n - edge + 1), step) for n in shape]
    others = [(d, h, w) for d in lattice[0] for h in lattice[1] for w in lattice[2]]
    picked = [others[i] for i in np.random.default_rng(seed).permutation(len(others))[:30]]
    assert all(foreground(hu[tuple(slice(s, s + edge) for s in o)], WINDOW) <= share for o in picked)


@settings(deadline=None, max_examples=200)
@given(
    shape=st.tuples(*[st.integers(1, 60)] * 3),
    window=st.sampled_from([(-175.0, 250.0), (-1000.0, 1000.0), (-40000.0, 40000.0), (0.0, 0.4), (-160.4, 239.6)]),
    seed=st.integers(0, 9999),
    data=st.data(),
)
def test_the_map_bounds_what_any_box_holds(shape, window, seed, data):
    hu = blobs(shape, seed) if seed % 3 else noise(shape, seed, *((-32768, 32767) if seed % 2 else (250, 251)))
    size = [data.draw(st.integers(1, n)) for n in shape]
    start = [data.draw(st.integers(0, n - s)) for n, s in zip(shape, size, strict=True)]
    coarse = BlockSums(hu, window).map()
    assert coarse.shape == map_shape(shape) and coarse.dtype == np.uint8
    least, most = bounds(coarse, shape, start, size, window)
    assert least <= foreground(hu[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))], window) <= most


def test_a_box_of_whole_cubes_is_bounded_to_a_step_of_the_map():
    hu = blobs((64, 64, 64), 1)
    least, most = bounds(BlockSums(hu, WINDOW).map(), hu.shape, (16, 0, 32), (32, 48, 16), WINDOW)
    assert 0 < most - least <= 1.01 / 255
    air = np.full((64, 64, 64), -1000, np.int16)
    assert bounds(BlockSums(air, WINDOW).map(), air.shape, (3, 5, 7), (20, 20, 20), WINDOW) == (0, 0)
    assert MAP_EDGE == 16


def drawn_by_the_plain_rule(scans, volumes, edge, seed, number):
    """The draw as the specification says it: without a map, from whole arrays."""
    random = np.random.Generator(np.random.Philox(key=[seed, number]))
    i = int(random.integers(len(scans)))
    settings, hu = scans.preparation, volumes[i]
    size = tuple(min(edge, n) for n in hu.shape)
    for _ in range(settings.max_draws):
        start = random.integers([n - s + 1 for n, s in zip(hu.shape, size, strict=True)])
        crop = hu[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))]
        if foreground(crop, settings.hu_window) >= settings.foreground_floor:
            break
    else:
        start = BlockSums(hu, settings.hu_window).brightest(edge)[0]
        crop = hu[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))]
    return pad(crop, (edge,) * 3, AIR)


@settings(deadline=None, max_examples=25)
@given(
    shapes=st.lists(st.tuples(*[st.integers(8, 70)] * 3), min_size=1, max_size=3),
    floor=st.sampled_from([0.0, 0.02, 0.05, 0.1, 0.3]),
    draws=st.sampled_from([1, 3, 32]),
    edge=st.sampled_from([8, 16, 20, 33]),
    seed=st.integers(0, 2**62),
)
def test_draws_are_those_of_the_plain_rule(tmp_path_factory, shapes, floor, draws, edge, seed):
    volumes = [blobs(shape, seed % 1000 + n) for n, shape in enumerate(shapes)]
    for hu in volumes:
        hu[tuple(slice(n // 2, n // 2 + 4) for n in hu.shape)] = 250
        floor = min(floor, BlockSums(hu, WINDOW).brightest(edge)[1])
    preparation = Preparation(foreground_floor=min(floor, 0.99), max_draws=draws)
    scans = store_scans(tmp_path_factory.mktemp("store"), volumes, preparation)
    for number in range(12):
        expected = drawn_by_the_plain_rule(scans, volumes, edge, seed, number)
        np.testing.assert_array_equal(draw_crop(scans, edge, seed, number), expected)


def test_an_empty_crop_is_rejected_without_reading_it(tmp_path, monkeypatch):
    hu = np.full((96, 96, 96), -1000, np.int16)
    hu[:48] = 40
    scans = store_scans(tmp_path, [hu])
    read = []
    plain = StoredVolume.read
    monkeypatch.setattr(StoredVolume, "read", lambda self, *box: read.append(box) or plain(self, *box))
    for number in range(40):
        draw_crop(scans, 16, 0, number)
    tries = sum(1 for number in range(40) for _ in tried(scans, hu.shape, 16, number))
    assert tries > 60  # half of the scan is air
    assert len(read) < 44


def tried(scans, shape, edge, number):
    """The starts that a draw of the plain rule looks at."""
    random = np.random.Generator(np.random.Philox(key=[0, number]))
    random.integers(len(scans))
    while True:
        start = random.integers([n - edge + 1 for n in shape])
        yield start
        if start[0] <= 48 - 0.05 * 425 / 215 * edge:
            return
