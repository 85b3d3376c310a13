import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from stored_scans import blobs

from nemesis.data.foreground import BlockSums
from nemesis.data.measure import content_hash, emptiness, intensities, label_voxels, unpacked

WINDOW = (-175.0, 250.0)
SHAPES = st.tuples(*[st.integers(1, 12)] * 3)


@given(shape=SHAPES, ends=st.tuples(st.integers(-32768, 32767), st.integers(-32768, 32767)).map(sorted), seed=st.integers(0, 99))
def test_intensities_are_those_of_all_voxels(shape, ends, seed):
    hu = np.random.default_rng(seed).integers(ends[0], ends[1] + 1, shape).astype(np.int16)
    found = intensities(hu)
    assert (found["hu_min"], found["hu_max"]) == (hu.min(), hu.max())
    np.testing.assert_allclose([found["hu_mean"], found["hu_std"]], [hu.mean(dtype=float), hu.std(dtype=float)], atol=1e-6)
    edges = [-40000, *range(-1024, 3073, 64), 40000]
    np.testing.assert_array_equal(found["hu_histogram"], np.histogram(hu, edges)[0])


@given(shape=SHAPES, top=st.sampled_from([0, 1, 13, 300]), seed=st.integers(0, 99))
def test_labels_are_counted(shape, top, seed):
    labels = np.random.default_rng(seed).integers(0, top + 1, shape).astype(np.uint16)
    np.testing.assert_array_equal(label_voxels(labels), np.bincount(labels.ravel()))


def test_the_hash_is_of_shape_and_values():
    hu = blobs((8, 9, 10), 0)
    assert content_hash(hu) == hashlib.sha256(b"(8, 9, 10)" + hu.astype("<i2").tobytes()).hexdigest()
    assert content_hash(np.asfortranarray(hu)) == content_hash(hu) == content_hash(hu.astype(">i2"))
    assert content_hash(hu.reshape(9, 8, 10)) != content_hash(hu)


def test_emptiness_is_told_as_each_figure_alone():
    hu = blobs((50, 61, 47), 3)
    found = emptiness(hu, WINDOW, 0.2, [24, 16], [32, 20])
    assert unpacked(found["map"]) == BlockSums(hu, WINDOW).map().tobytes()
    for edge in (16, 24):
        assert found["foreground"][str(edge)] == (BlockSums(hu, WINDOW).grid_foreground(edge) >= 0.2).mean()
    assert found["brightest"] == {str(edge): BlockSums(hu, WINDOW).brightest(edge)[1] for edge in (20, 32)}
