"""The page that shows what was read, and what was refused."""

from __future__ import annotations

import base64
import io
import json
import re

import numpy as np
import pytest
from small_scans import body, organs, save

from nemesis.config import Preparation
from nemesis.data.cases import write_manifest
from nemesis.data.ingest import ingest
from nemesis.data.listings import label_numbers, list_cases
from nemesis.datasets import ScanFiles
from nemesis.report.quality import _histograms, _slices, write_quality

SPEC = {"experiment": "small <one>", "hu_window": [-175.0, 250.0], "every": None, "accept": [], "version": 1}
GOOD = 5


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    """Two datasets: five good scans (two of them equal) and a truncated one; and one that holds nothing good."""
    root, out = tmp_path_factory.mktemp("Doe^John"), tmp_path_factory.mktemp("out")
    for number in range(GOOD):
        save(root / "ct" / f"c{number}" / "image.nii.gz", body(seed=number % 4))
        save(root / "ct" / f"c{number}" / "label.nii.gz", organs() * (1 + 10 * (number == 2)))
    save(root / "ct" / "cut" / "image.nii.gz", body(seed=9))
    whole = (root / "ct" / "cut" / "image.nii.gz").read_bytes()
    (root / "ct" / "cut" / "image.nii.gz").write_bytes(whole[:-50])
    save(root / "bad" / "z" / "image.nii.gz", np.abs(body()))
    paths = []
    for name, labels in (("ct", {"exhaustive": "{case}/label.nii.gz"}), ("bad", {})):
        dataset = ScanFiles(reader="files", name=name, labels=labels, label_numbers={"liver": 1, "aorta": 2, "spleen": 11})
        listed = list_cases(dataset, root / name)
        write_manifest(out / f"{name}.json", dataset, listed, label_numbers(dataset, root / name))
        paths.append(out / f"{name}.verdicts.json")
        ingest(out / f"{name}.json", root / name, out / name, paths[-1], Preparation(), 16, 0)
    return paths


def page(verdicts, tmp_path, **spec):
    write_quality(SPEC | spec, verdicts, tmp_path / "quality.html")
    return (tmp_path / "quality.html").read_text(encoding="utf-8")


def with_verdicts(verdicts, tmp_path, change):
    """The verdicts of the first dataset, changed."""
    content = json.loads(verdicts[0].read_text())
    content["volumes"] = str((verdicts[0].parent / content["volumes"]).resolve())
    for case in content["cases"]:
        change(case)
    (tmp_path / "changed.json").write_text(json.dumps(content))
    return [tmp_path / "changed.json"]


def section(text, anchor):
    return re.search(rf'<section id="{anchor}">(.*?)</section>', text, re.DOTALL)[1]


def test_refused_scans_are_told_by_case_and_never_by_path(verdicts, tmp_path):
    text = page(verdicts, tmp_path)
    refused = section(text, "refused")
    assert "<code>ct/cut</code>" in refused and "truncated" in refused and "exclude: [ct/cut]" in refused
    assert "<code>bad/z</code>" in refused and "is not CT in HU" in refused
    assert "5 of 7 scans are good." in text and "2 are refused" in text
    assert "Doe" not in text and "/tmp" not in text and "nii.gz" not in text
    assert "small &lt;one&gt;" in text and "<one>" not in text


def test_counts_and_ranges_of_every_dataset(verdicts, tmp_path):
    rows = re.findall(r"<tr>(<td>.*?)</tr>", page(verdicts, tmp_path))
    told = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows]
    ct = next(row for row in told if row[0] == "ct")
    assert ct[1:5] == ["6", "6", "1", "0"]
    assert ct[5] == "5 exhaustive" and ct[6] == "20 × 24 × 16" and ct[7] == "3.00 × 2.00 × 1.50"
    assert next(row for row in told if row[0] == "bad")[6] == "– × – × –"


def test_every_nth_scan_is_shown(verdicts, tmp_path):
    def shown(**spec):
        return re.findall(r"<strong>(ct/\w+)</strong>", section(page(verdicts, tmp_path, **spec), "dataset-ct"))

    assert shown() == [f"ct/c{n}" for n in range(GOOD)]
    assert shown(every=2) == ["ct/c0", "ct/c2", "ct/c4"]
    assert shown(every=100) == ["ct/c0"]
    assert "No scan of it is good." in section(page(verdicts, tmp_path), "dataset-bad")


def test_a_large_dataset_shows_about_a_dozen(verdicts, tmp_path):
    content = json.loads(verdicts[0].read_text())
    good = [case for case in content["cases"] if case["ok"]]
    content["cases"] = [good[n % GOOD] | {"case": f"n{n:03d}"} for n in range(100)]
    content["volumes"] = str((verdicts[0].parent / content["volumes"]).resolve())
    (tmp_path / "many.json").write_text(json.dumps(content))
    text = page([tmp_path / "many.json"], tmp_path)
    assert len(re.findall("<img src", text)) == 12 and "One scan in 9 of 100" in text


def test_equal_scans_and_notes_are_told(verdicts, tmp_path):
    text = page(verdicts, tmp_path)
    assert "<code>ct/c0 = ct/c4</code>" in section(text, "equal")
    assert "1 group of scans with equal HU" in text
    notes = section(text, "notes")
    assert "that no organ of the dataset has: 22" in notes and ">ct/c2<" in notes

    def tilted(case):
        case["notes"] = ["gantry tilt undone"] if case["ok"] else []

    text = page(with_verdicts(verdicts, tmp_path, tilted), tmp_path)
    assert '<td class="n">5</td><td>gantry tilt undone</td><td>ct/c0, ct/c1, ct/c2, ct/c3, ct/c4</td>' in section(text, "notes")


def test_suspicious_scans_are_shown_until_they_are_accepted(verdicts, tmp_path):
    def doubted(case):
        if case["case"] == "c1":
            case["suspicions"] = [{"where": "/tmp/Doe", "what": "left and right look exchanged", "remedy": "Look at it."}]

    changed = with_verdicts(verdicts, tmp_path, doubted)
    text = page(changed, tmp_path)
    part = section(text, "suspicious")
    assert "left and right look exchanged" in part and "accept: [ct/c1]" in part and part.count("<img") == 1
    assert "1 is to be looked at before training" in text and "Doe" not in text
    text = page(changed, tmp_path, accept=["ct/c1"])
    assert "Accepted by" in section(text, "suspicious") and "to be looked at before training" not in text


def test_it_needs_nothing_else_and_a_repeat_gives_the_same_bytes(verdicts, tmp_path):
    text = page(verdicts, tmp_path)
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert sources and all(s.startswith(("data:", "#")) for s in sources)
    assert page(verdicts, tmp_path) == text


def test_slices_are_the_right_way_up(verdicts, tmp_path):
    """A stone anterior, right and superior: above and left in the axial slice, above and left in the coronal one, above and
    left in the sagittal one (anterior lies at the left)."""
    hu = np.full((40, 40, 40), -1000, np.int16)
    hu[4:36, 4:36, 4:36] = 0
    hu[16:24, 24:34, 24:34] = hu[24:34, 24:34, 16:24] = hu[24:34, 16:24, 24:34] = 3000  # one for each plane
    save(tmp_path / "raw" / "a.nii.gz", hu, "LPS", np.diag([2.0, 2.0, 2.0, 1.0]))
    dataset = ScanFiles(reader="files", name="stones", image="{case}.nii.gz")
    write_manifest(tmp_path / "m.json", dataset, list_cases(dataset, tmp_path / "raw"), {})
    ingest(tmp_path / "m.json", tmp_path / "raw", tmp_path / "store", tmp_path / "v.json", Preparation(), 16, 0)
    (case,) = json.loads((tmp_path / "v.json").read_text())["cases"]
    figure = _slices(case | {"store": tmp_path / "store" / case["stem"]}, (-175.0, 250.0))
    for axes in figure.axes:
        picture = axes.images[0].get_array()
        bright = np.argwhere(picture == 3000)
        assert len(bright) and (bright.mean(axis=0) < np.array(picture.shape) / 2).all(), bright.mean(axis=0)


def test_slices_have_the_proportions_of_the_body(verdicts):
    content = json.loads(verdicts[0].read_text())
    case = next(case for case in content["cases"] if case["ok"])
    figure = _slices(case | {"store": verdicts[0].parent / content["volumes"] / case["stem"]}, (-175.0, 250.0))
    millimetres = np.multiply(case["shape"], case["spacing"])  # D, H, W
    wide_and_tall = [(axes.images[0].get_extent()[1], axes.images[0].get_extent()[3]) for axes in figure.axes]
    assert wide_and_tall == [tuple(millimetres[[1, 2]]), tuple(millimetres[[1, 0]]), tuple(millimetres[[2, 0]])]
    assert all(axes.get_aspect() == 1.0 and len(axes.images) == 2 for axes in figure.axes)  # organs outlined


def test_pictures_are_pictures(verdicts, tmp_path):
    from matplotlib.image import imread

    for content in re.findall(r'src="data:image/png;base64,([^"]*)"', page(verdicts, tmp_path)):
        picture = imread(io.BytesIO(base64.b64decode(content)), format="png")
        assert picture.shape[0] > 100 and picture[..., :3].std() > 0.02


def test_the_voxel_size_is_the_scans_own_where_they_were_resampled(tmp_path):
    save(tmp_path / "raw/a.nii.gz", body(), "LPS")
    dataset = ScanFiles(reader="files", name="ct", image="{case}.nii.gz")
    write_manifest(tmp_path / "m.json", dataset, list_cases(dataset, tmp_path / "raw"), {})
    preparation = Preparation(spacing_mm=(1.5, 1.5, 1.5))
    ingest(tmp_path / "m.json", tmp_path / "raw", tmp_path / "store", tmp_path / "v.json", preparation, 16, 0)
    text = page([tmp_path / "v.json"], tmp_path)
    assert '<td class="n">3.00 × 2.00 × 1.50</td>' in text
    assert "40 × 32 × 16 voxels; 1.50 × 1.50 × 1.50 mm; resampled from 3.00 × 2.00 × 1.50 mm; no labels" in text
    (case,) = json.loads((tmp_path / "v.json").read_text())["cases"]
    _, along, _ = _histograms([case], (-175.0, 250.0)).axes
    (bar,) = (bar for bar in along.patches if bar.get_height())
    assert bar.get_x() < 3.0 < bar.get_x() + bar.get_width()
