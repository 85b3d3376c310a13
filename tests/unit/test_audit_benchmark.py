"""The benchmark of the audit counts what it says."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from small_scans import save

from benchmarks import audit
from nemesis.data.phantom import make_subject
from nemesis.data.readers import Volume


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four patients, one of whom lies there twice, on other voxels; two layouts."""
    root = tmp_path_factory.mktemp("scans")
    for number in range(4):
        subject = make_subject(7, number, 8.0)
        d, h, w = subject.spacing
        path = root / "a" / f"p{number}" / "image.nii.gz" if number < 2 else root / "b" / "imagesTr" / f"p{number}_0000.nii.gz"
        save(path, subject.hu, affine=np.diag([h, w, d, 1.0]))
    d, h, w = subject.spacing
    save(root / "again" / "p3" / "image.nii.gz", subject.hu[:, :, 2:], affine=np.diag([h, w, d, 1.0]))
    return root


def test_scans_of_both_layouts_are_found(folder):
    assert [patient for patient, _ in audit.files(folder)] == ["p0", "p1", "p2", "p3", "p3"]


def test_alterations_are_what_they_are_called():
    hu = np.arange(16**3, dtype=np.int16).reshape(16, 16, 16) - 2000
    found = dict(audit.alterations(Volume(hu, (2.0, 2.0, 2.0), np.eye(4)), np.random.default_rng(0)))
    assert len(found) == 3 + 3 * 7
    assert np.array_equal(found["lower half"].hu, hu[:8]) and np.array_equal(found["upper half"].hu, hu[8:])
    assert np.array_equal(found["left half"].hu, hu[:, :8]) and np.array_equal(found["anterior half"].hu, hu[:, :, 8:])
    assert 0.3 < found["box half"].hu.size / hu.size < 0.7
    assert (found["clipped to −175…250"].hu.min(), found["clipped to −175…250"].hu.max()) == (-175, 250)
    for name, copy in found.items():
        assert ("resampled" in name) == (copy.spacing != (2.0, 2.0, 2.0))
        assert all(1.5 <= mm <= 5 for mm in copy.spacing)
        assert "clipped" not in name or copy.hu.min() >= -1024


def test_the_figures_and_where_they_are_kept(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["audit", str(folder), "--out", str(tmp_path / "audit.json")])
    audit.main()
    found = json.loads((tmp_path / "audit.json").read_text())
    assert (found["scans"], found["patients"]) == (5, 4)
    sides = [{row["altered"]: row for row in found[half]} for half in ("tuning", "testing")]
    copies = [side["resampled"]["copies"] for side in sides]
    assert sum(copies) == 5
    assert all(side["all"]["copies"] == 24 * n for side, n in zip(sides, copies, strict=True))
    assert sum(side["all"]["missed"] for side in sides) <= 2 and sum(side["all"]["false_alarms"] for side in sides) == 0
    ((patient, score),) = found["unaltered_scans_of_one_patient"]
    assert patient == "p3" and score >= found["threshold"]
    sizes = [[n for p, n in (("p0", 1), ("p1", 1), ("p2", 1), ("p3", 2)) if audit._half_of(p) == half] for half in (0, 1)]
    for side, own in zip(sides, sizes, strict=True):
        assert side["resampled"]["pairs"] == 2 * side["unaltered"]["pairs"] == sum(own) ** 2 - sum(n * n for n in own)
    assert len(found["missed"]) == sum(side["all"]["missed"] for side in sides)
    assert "| resampled " in capsys.readouterr().out


def test_exact_intervals():
    assert audit.exact_interval(0, 20) == pytest.approx([0, 0.1684], abs=1e-4)
    assert audit.exact_interval(5, 20) == pytest.approx([0.0866, 0.4910], abs=1e-4)
    assert audit.exact_interval(3, 3) == pytest.approx([0.2924, 1], abs=1e-4)
    assert audit.exact_interval(0, 0) == [0.0, 1.0]
