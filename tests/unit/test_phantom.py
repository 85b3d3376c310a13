"""The demo cohort: reproducible, the right way round, exactly labelled, and not trivially separable."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from nemesis.data import phantom
from nemesis.data.phantom import LABELLED, PHASES, PhantomSubject, make_subject

PROBE_ORGANS = (8, 4, 1, 3, 2, 6, 7, 11)
COHORT = range(20)
SIDE = 32  # voxels of a superpatch


@cache
def subject(index: int, spacing_mm: float = 5.0) -> PhantomSubject:
    return make_subject(0, index, spacing_mm)


@cache
def torso() -> PhantomSubject:
    """A subject whose scan holds all the probe organs whole, in the portal-venous phase."""
    for index in COHORT:
        s = subject(index)
        present = set(np.unique(s.labels[2:-2]))
        if set(PROBE_ORGANS) <= present and s.phase == "portal-venous" and 6 not in s.labels[[0, -1]]:
            return s
    raise AssertionError("no subject of the cohort shows all organs")


def centroid(s: PhantomSubject, label: int) -> np.ndarray:
    """World (R, A, S) centroid of a label, mm, through the affine."""
    right_anterior_superior = np.argwhere(s.labels == label).mean(0)[[1, 2, 0]]
    return s.affine[:3, :3] @ right_anterior_superior + s.affine[:3, 3]


def millilitres(s: PhantomSubject, label: int) -> float:
    return float((s.labels == label).sum() * np.prod(s.spacing) / 1000)


def test_same_subject_in_any_order() -> None:
    first = make_subject(7, 3, 8.0)
    make_subject(7, 4, 8.0)
    again = make_subject(7, 3, 8.0)
    assert np.array_equal(first.hu, again.hu)
    assert np.array_equal(first.labels, again.labels)
    assert first.spacing == again.spacing
    assert np.array_equal(first.affine, again.affine)
    for other in (make_subject(7, 4, 8.0), make_subject(8, 3, 6.0)):
        assert other.hu.shape != first.hu.shape or not np.array_equal(other.hu, first.hu)


def test_same_subject_in_another_process() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        elsewhere = pool.submit(make_subject, 0, 2, 5.0).result()
    assert np.array_equal(elsewhere.hu, subject(2).hu)
    assert np.array_equal(elsewhere.labels, subject(2).labels)


def test_slabs_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = subject(2)
    monkeypatch.setattr(phantom, "SLAB_VOXELS", whole.hu.size // 4)
    slabs = make_subject(0, 2, 5.0)
    assert np.array_equal(slabs.labels, whole.labels)
    assert np.mean(slabs.hu != whole.hu) < 1e-3  # up to rounding
    assert np.abs(slabs.hu.astype(int) - whole.hu).max() <= 1


@pytest.mark.parametrize("index", COHORT)
def test_types_geometry_and_facts(index: int) -> None:
    s = subject(index)
    assert s.hu.dtype == np.int16
    assert s.labels.dtype == np.uint8
    assert s.hu.shape == s.labels.shape
    assert s.affine.shape == (4, 4)
    assert s.affine.dtype == np.float64
    d, h, w = s.spacing
    assert np.allclose(s.affine[:3, :3], np.diag([h, w, d]))  # RAS+: axes (R, A, S) are (H, W, D)
    assert s.annotated == LABELLED
    assert set(PROBE_ORGANS) <= set(LABELLED)
    assert s.phase in PHASES
    assert set(np.unique(s.labels)) <= {0, *LABELLED}
    assert not set(np.unique(s.labels)) & set(s.absent)
    assert s.hu.min() >= -1024
    assert s.hu.max() < 2000
    assert min(s.hu.shape) >= 30
    assert max(s.hu.shape) <= 140


def test_spacing_is_anisotropic_and_varies() -> None:
    spacings = np.array([subject(i).spacing for i in COHORT])
    assert np.array_equal(spacings[:, 1], spacings[:, 2])
    assert np.abs(spacings[:, 0] / spacings[:, 1] - 1).max() > 0.2
    assert spacings.std(0).min() > 0.1
    assert np.abs(spacings / 5 - 1).max() <= 0.26
    assert len({subject(i).hu.shape for i in COHORT}) > 16


def test_left_right_up_down_front_back() -> None:
    s = torso()
    right, anterior, superior = 0, 1, 2
    at = {label: centroid(s, label) for label in LABELLED}
    assert at[6][right] > at[8][right] + 20 > at[1][right] + 40  # liver, aorta, spleen: from right to left
    assert at[2][right] > at[8][right] + 20 > at[3][right] + 40  # right kidney, aorta, left kidney
    assert at[9][right] > at[8][right]  # the cava lies to the right of the aorta
    assert at[7][anterior] > at[3][anterior] + 30  # stomach before left kidney
    assert at[6][anterior] > at[2][anterior] + 20  # liver before right kidney
    assert at[6][superior] > at[2][superior] + 10
    assert at[1][superior] > at[3][superior]
    # The same, said in array axes: H grows towards the right, W towards the front, D towards the head.
    d, h, w = np.argwhere(s.labels == 6).mean(0) - np.argwhere(s.labels == 3).mean(0)
    assert d > 0
    assert h > 0
    assert w > 0
    dense = np.argwhere((s.hu > 300) & (np.indices(s.hu.shape)[0] < len(s.hu) // 2))  # lumbar spine, pelvis
    assert dense[:, 2].mean() < s.hu.shape[2] / 2


def test_lungs_are_above_the_abdomen() -> None:
    scans = [s for s in map(subject, COHORT) if len(s.hu) * s.spacing[0] > 400]  # mm: chest to pelvis
    assert scans
    for s in scans:
        d, h, w = s.hu.shape
        core = s.hu[:, h // 4 : -h // 4, w // 4 : -w // 4].mean((1, 2))  # HU of the inner trunk, plane by plane
        assert core[d // 2 :].mean() < core[: d // 2].mean() - 100


def test_some_organs_are_gone_and_some_out_of_view() -> None:
    gone = {label for i in range(60) for label in phantom._plan(0, i).absent}
    assert {1, 3, 4} <= gone
    assert not gone & {6, 8, 9}
    assert 0.05 < np.mean([4 in phantom._plan(0, i).absent for i in range(100)]) < 0.35
    seen = {label: np.mean([label in subject(i).labels for i in COHORT]) for label in PROBE_ORGANS}
    assert all(share > 0.4 for share in seen.values())
    assert min(seen.values()) < 0.95
    assert {subject(i).phase for i in COHORT} == set(PHASES)


def test_organs_have_the_density_and_the_size_of_organs() -> None:
    densities: dict[int, list[float]] = {label: [] for label in PROBE_ORGANS}
    for i in COHORT:
        for label in PROBE_ORGANS:
            inside = subject(i).hu[subject(i).labels == label]
            if len(inside) > 50:
                densities[label].append(float(np.median(inside)))
    for label in (1, 2, 3, 6, 11):
        assert all(-10 < density < 230 for density in densities[label]), label
    assert all(-40 < density < 60 for density in densities[4])  # bile
    assert max(densities[8]) > 130 > 80 > min(densities[8])  # the aorta with and without contrast
    # Subjects vary enough that no density tells the spleen from the liver, or the kidney from the pancreas.
    assert min(densities[6]) < max(densities[1])
    assert min(densities[1]) < max(densities[6])
    assert min(densities[2]) < max(densities[11])
    s = torso()
    sizes = {6: (800, 2600), 1: (60, 500), 2: (80, 330), 3: (80, 330), 4: (10, 120), 7: (100, 700), 8: (50, 400)}
    for label, (low, high) in sizes.items():
        assert low < millilitres(s, label) < high, label


@pytest.mark.parametrize("index", [0, 1, 9])
def test_same_anatomy_at_another_resolution(index: int) -> None:
    coarse, fine = subject(index), subject(index, 4.0)
    assert coarse.absent == fine.absent
    assert coarse.phase == fine.phase
    assert np.allclose(np.divide(coarse.spacing, fine.spacing), 1.25, atol=1e-3)
    shared = [label for label in LABELLED if millilitres(coarse, label) > 40]
    assert len(shared) >= 2
    for label in shared:
        assert millilitres(coarse, label) == pytest.approx(millilitres(fine, label), rel=0.12)
        assert np.linalg.norm(centroid(coarse, label) - centroid(fine, label)) < 4  # mm
        if label != 7:  # the stomach's median lies between gas and fluid
            a, b = (np.median(s.hu[s.labels == label]) for s in (coarse, fine))
            assert abs(a - b) < 15


def superpatches(s: PhantomSubject) -> list[tuple[float, np.ndarray]]:
    """(mean of the windowed intensity, voxels per label) of the grid's superpatches above the foreground floor."""
    pad = [(0, -n % SIDE) for n in s.hu.shape]
    hu, labels = np.pad(s.hu, pad, constant_values=-1024), np.pad(s.labels, pad)
    windowed = np.clip((hu + 175.0) / 425.0, 0, 1)
    out = []
    for corner in np.ndindex(*(n // SIDE for n in hu.shape)):
        cut = tuple(slice(SIDE * c, SIDE * (c + 1)) for c in corner)
        if (mean := float(windowed[cut].mean())) >= 0.05:
            out.append((mean, np.bincount(labels[cut].ravel(), minlength=12)))
    return out


def test_presence_is_not_told_by_mean_intensity() -> None:
    pieces = [piece for i in COHORT for piece in superpatches(subject(i))]
    means, counts = np.array([p[0] for p in pieces]), np.stack([p[1] for p in pieces])
    aurocs = []
    for label in PROBE_ORGANS:
        present = counts[:, label] > 20
        assert 0.04 < present.mean() < 0.6, label
        auroc = roc_auc_score(present, means)
        aurocs.append(max(auroc, 1 - auroc))
    assert np.mean(aurocs) < 0.73
    assert sorted(aurocs)[4] < 0.78
    assert max(aurocs) < 0.9


@pytest.mark.parametrize(("seed", "index", "spacing"), [(-1, 0, 5.0), (0, -1, 5.0), (0, 0, 0.0), (0, 0, 40.0)])
def test_refuses_nonsense(seed: int, index: int, spacing: float) -> None:
    with pytest.raises(ValueError, match="got"):
        make_subject(seed, index, spacing)
