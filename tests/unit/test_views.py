"""Scans at a voxel size of a method's own: where a superpatch lies in a view, and what is encoded of it."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from stored_scans import store_scans

from nemesis.data.foreground import extents, grid
from nemesis.data.readers import Volume, resample
from nemesis.data.superpatches import evaluation_superpatches
from nemesis.data.views import view_name, windows
from nemesis.evaluation.features import features

SHAPES = st.tuples(*[st.integers(1, 40)] * 3)


def test_names():
    assert view_name((1.5, 1.0, 0.75)) == "@1.5x1x0.75"


@given(shape=SHAPES, view=SHAPES, common=st.integers(1, 20), edge=st.integers(1, 20))
def test_the_windows_of_all_superpatches_cover_the_view_and_stay_in_their_box(shape, view, common, edge):
    covered = np.zeros(view, int)
    for start, extent in zip(grid(shape, common), extents(shape, common), strict=True):
        box = [(round(a * v / n), round((a + e) * v / n)) for a, e, n, v in zip(start, extent, shape, view, strict=True)]
        found = windows(start.tolist(), extent.tolist(), shape, view, edge)
        longest = [max(1, b - a) for a, b in box]
        assert len(found) == np.prod([-(-n // edge) for n in longest])
        for first, size in found:
            assert all(0 < s <= edge and a >= 0 and a + s <= v for a, s, v in zip(first, size, view, strict=True))
            inside = [a >= low and a + s <= high for (low, high), a, s in zip(box, first, size, strict=True) if high > low]
            assert all(inside)
            covered[tuple(slice(a, a + s) for a, s in zip(first, size, strict=True))] += 1
    assert (covered > 0).all()


class Mean:
    """Encodes a superpatch as the mean of its voxels that are not air, and how many these are."""

    def encode(self, network, voxels):
        seen = voxels > 0
        return torch.stack([voxels.sum((1, 2, 3, 4)) / seen.sum((1, 2, 3, 4)).clamp(min=1), seen.float().sum((1, 2, 3, 4))], 1)


def seen_at(tmp_path, spacing, edge=16):
    """Features of a scan of 2 mm voxels that brightens along every axis, from its view at another voxel size."""
    d, h, w = np.indices((32, 40, 48))
    hu = (-100 + 3 * d + 2 * h + w).astype(np.int16)
    scans = store_scans(tmp_path, [hu])
    resampled, _ = resample(Volume(hu, (2.0, 2.0, 2.0), np.eye(4)), None, spacing)
    (tmp_path / "view").mkdir()
    view = store_scans(tmp_path / "view", [resampled.hu])
    table = evaluation_superpatches_of(scans, edge)
    arguments = (Mean(), None, scans, table, edge, torch.device("cpu"))
    return features(*arguments), features(*arguments, view=view), table


def evaluation_superpatches_of(scans, edge):
    rows = {"kind": "none", "annotated": []}
    scans.row = lambda i: rows
    return evaluation_superpatches(scans, edge, [], {"ct": {"liver": 1}}, 0)


def test_a_superpatch_is_the_same_place_in_a_finer_view(tmp_path):
    plain, fine, table = seen_at(tmp_path, (1.0, 1.0, 1.0))
    assert len(plain) == len(fine) == len(table) == 18
    np.testing.assert_allclose(fine[:, 0], plain[:, 0], atol=0.003)
    valid = table[["valid_d", "valid_h", "valid_w"]].prod(axis=1).to_numpy()
    np.testing.assert_array_equal(plain[:, 1], valid)
    whole = valid == 16**3
    np.testing.assert_array_equal(fine[whole, 1], 16**3)  # the mean over its windows of 16³, none of which holds padding


def test_a_superpatch_is_the_same_place_in_a_coarser_view_beside_air(tmp_path):
    plain, coarse, table = seen_at(tmp_path, (4.0, 4.0, 4.0))
    np.testing.assert_allclose(coarse[:, 0], plain[:, 0], atol=0.01)
    valid = table[["valid_d", "valid_h", "valid_w"]].prod(axis=1).to_numpy()
    np.testing.assert_array_equal(coarse[:, 1], valid / 8)


def test_a_view_on_the_grid_of_the_scans_gives_the_same_bits(tmp_path):
    plain, same, _ = seen_at(tmp_path, (2.0, 2.0, 2.0))
    np.testing.assert_array_equal(plain, same)
