"""Two scans of one acquisition are told from two patients', whatever was done to either."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nemesis.data import signature as module
from nemesis.data.phantom import make_subject
from nemesis.data.readers import Volume, resample
from nemesis.data.signature import KEY_POINTS, SAME, SIGNATURE, Match, matches, signature

SUBJECTS = 5


@pytest.fixture(scope="module")
def patients():
    """Phantoms with voxels of about 5 mm."""
    subjects = [make_subject(3, index, 5.0) for index in range(SUBJECTS)]
    return [Volume(subject.hu, subject.spacing, subject.affine) for subject in subjects]


@pytest.fixture(scope="module")
def known(patients):
    return [signature(patient.hu, patient.spacing) for patient in patients]


def score(hu, spacing, of):
    """Of a scan with another's signature; 0 where too few key points agree."""
    return max((match.score for match in matches([signature(hu, spacing)], [of])), default=0.0)


def test_what_a_signature_is(patients, known):
    hu, spacing = patients[0].hu, patients[0].spacing
    assert known[0].dtype == SIGNATURE and 50 < len(known[0]) <= KEY_POINTS
    extent = (np.array(hu.shape) - 1) * spacing
    assert (known[0]["place"] >= -0.5 * module.GRID).all() and (known[0]["place"] <= extent + 0.5 * module.GRID).all()
    assert known[0].nbytes < 20_000
    assert np.array_equal(signature(hu, spacing), known[0])


def test_different_patients_do_not_match(known):
    assert not [match for match in matches(known, known) if match.first != match.second and match.same]


@pytest.mark.parametrize("spacing", [(1.5, 1.5, 1.5), (5.0, 5.0, 5.0), (5.0, 1.5, 2.0), (2.5, 4.0, 3.0)])
def test_resampled(patients, known, spacing):
    moved, _ = resample(patients[0], None, spacing)
    assert score(moved.hu, spacing, known[0]) >= SAME
    assert score(moved.hu, spacing, known[1]) < SAME


@pytest.mark.parametrize("window", [(-175, 250), (-1024, 3071)])
def test_clipped(patients, known, window):
    hu = np.clip(patients[0].hu, *np.array(window, np.int16))
    assert score(hu, patients[0].spacing, known[0]) >= SAME


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("far", [False, True])
def test_cropped_to_half_resampled_and_clipped(patients, known, axis, far):
    n = patients[0].hu.shape[axis]
    half = np.take(patients[0].hu, range(n // 2, n) if far else range(n // 2), axis)
    assert score(half, patients[0].spacing, known[0]) >= SAME
    moved, _ = resample(Volume(half, patients[0].spacing, np.eye(4)), None, (3.0, 4.0, 2.5))
    hu = np.clip(moved.hu, np.int16(-175), np.int16(250))
    assert score(hu, moved.spacing, known[0]) >= SAME
    assert max(score(hu, moved.spacing, other) for other in known[1:]) < SAME


def test_both_halves_of_one_scan_are_not_the_same(patients):
    middle = patients[0].hu.shape[0] // 2
    lower, upper = (signature(part, patients[0].spacing) for part in (patients[0].hu[:middle], patients[0].hu[middle:]))
    assert not [match for match in matches([lower], [upper]) if match.same]


def test_a_mirrored_scan_is_another(patients, known):
    assert score(np.ascontiguousarray(patients[0].hu[:, ::-1]), patients[0].spacing, known[0]) < SAME


def test_padding_does_not_matter(patients, known):
    padded = np.pad(patients[0].hu, ((3, 9), (14, 2), (0, 7)), constant_values=-1024)
    assert score(padded, patients[0].spacing, known[0]) >= SAME


def test_many_against_many_is_pair_by_pair(known, monkeypatch):
    empty = np.empty(0, SIGNATURE)
    first, second = [known[0], empty, known[1], known[1], known[2]], [known[2], known[0], empty, known[1]]
    whole = sorted(matches(first, second), key=lambda match: (match.first, match.second))
    assert [(m.first, m.second) for m in whole if m.same] == [(0, 1), (2, 3), (3, 3), (4, 0)]
    single = [m for i, one in enumerate(first) for j, other in enumerate(second) for m in matches([one], [other])
              if (m.first, m.second) == (0, 0) and (i, j)]  # fmt: skip
    assert sorted((m.agree, m.common) for m in single) == sorted((m.agree, m.common) for m in whole)
    monkeypatch.setattr(module, "BLOCK", 300)
    assert sorted(matches(first, second), key=lambda match: (match.first, match.second)) == whole


def test_few_signatures_are_held_at_a_time(known, monkeypatch):
    """Of 100,000 scans no list is made."""
    monkeypatch.setattr(module, "BLOCK", KEY_POINTS)
    read = []

    def reading():
        for number in range(6):
            read.append(number)
            yield known[0]

    found = matches(reading(), [known[0]])
    assert next(found).first == 0
    assert len(read) < 4


def test_the_score_weighs_how_many_agree_of_how_many():
    scores = [Match(0, 0, agree, common).score for agree, common in ((100, 100), (50, 100), (20, 100), (5, 100), (2, 100))]
    assert scores == sorted(scores, reverse=True) and scores[-2:] == [0.0, 0.0]
    assert Match(0, 0, 60, 200).score > Match(0, 0, 6, 20).score  # the same share of more key points
    assert scores[0] == pytest.approx(100 * np.log(1 / module.CHANCE))


@pytest.mark.parametrize("shape", [(8, 8, 8), (8, 60, 60), (60, 8, 60)])
def test_a_thin_scan_has_none_or_few(shape):
    hu = np.random.default_rng(0).integers(-1000, 400, shape).astype(np.int16)
    assert len(signature(hu, (0.3, 0.3, 0.3))) == 0
    assert signature(hu, (1.0, 1.0, 1.0)).dtype == SIGNATURE


def test_nothing_stands_out_of_nothing():
    assert len(signature(np.full((40, 40, 40), 30, np.int16), (2.0, 2.0, 2.0))) == 0


@given(
    hu=arrays(np.int16, st.tuples(*[st.integers(1, 12)] * 3), elements=st.integers(-32768, 32767)),
    spacing=st.tuples(*[st.floats(0.1, 30)] * 3),
)
def test_any_volume_has_a_signature(hu, spacing):
    found = signature(hu, spacing)
    assert found.dtype == SIGNATURE and len(found) <= KEY_POINTS and np.isfinite(found["place"]).all()
    assert all(match.score >= 0 for match in matches([found], [found]))


def test_a_signature_takes_less_memory_than_twice_the_scan():
    hu = np.random.default_rng(0).integers(-1000, 1000, (160, 192, 192), np.int16)
    tracemalloc.start()
    signature(hu, (1.5, 1.5, 1.5))  # voxels of which none is passed over
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * hu.nbytes
