import json
import pickle

import numpy as np
import pytest
from small_scans import RAS, REAL, body, organs, save

from nemesis.config import Preparation
from nemesis.data.cases import write_manifest
from nemesis.data.foreground import foreground
from nemesis.data.gate import write_index
from nemesis.data.ingest import ingest
from nemesis.data.listings import label_numbers, list_cases
from nemesis.data.pools import write_pool
from nemesis.data.scans import Scans
from nemesis.data.store import AIR
from nemesis.data.superpatches import draw_crop, evaluation_superpatches
from nemesis.datasets import NnunetFolder, ScanFiles
from nemesis.errors import NemesisError

WINDOW = (-175.0, 250.0)
ORGANS = {"liver": 1, "aorta": 2, "spleen": 3}


def store(tmp, dataset, root, edge, preparation=Preparation(), workers=0):  # noqa: B008 - frozen
    """The scans of a whole dataset, ingested."""
    cases, numbers = list_cases(dataset, root), label_numbers(dataset, root)
    write_manifest(tmp / "manifest.json", dataset, cases, numbers)
    ingest(tmp / "manifest.json", root, tmp / "store", tmp / "store/verdicts.json", preparation, edge, workers)
    write_index([tmp / "store" / "verdicts.json"], tmp / "index.parquet")
    write_pool(tmp / "pool.json", cases, labels=True)
    return Scans(tmp / "pool.json", tmp / "index.parquet", preparation), cases


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Four scans: exhaustive, partial, pseudo and no labels; the second is smaller than a superpatch of 16 along D."""
    raw, out = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("out")
    for i, (case, name) in enumerate([("a", "full"), ("b", "part"), ("c", "fake"), ("d", None)]):
        shape = (10, 40, 36) if case == "b" else (34, 40, 36)
        save(raw / case / "image.nii.gz", body(shape, i))
        if name:
            save(raw / case / f"{name}.nii.gz", organs(shape))
    labels = {"exhaustive": "{case}/full.nii.gz", "partial": "{case}/part.nii.gz", "pseudo": "{case}/fake.nii.gz"}
    dataset = ScanFiles(reader="files", name="ct", labels=labels, label_numbers=ORGANS)
    return (*store(out, dataset, raw, 16), out)


def test_a_crop_is_a_function_of_seed_and_number(small):
    scans = small[0]
    again = pickle.loads(pickle.dumps(scans))
    crops = [draw_crop(scans, 16, 3, n) for n in range(30)]
    for n in reversed(range(30)):
        np.testing.assert_array_equal(draw_crop(again, 16, 3, n), crops[n])
    assert len({c.tobytes() for c in crops}) > 25
    assert draw_crop(scans, 16, 4, 0).tobytes() != crops[0].tobytes()


def test_crops_come_from_every_scan_padded_and_never_empty(small):
    scans = small[0]
    padded = 0
    for n in range(80):
        crop = draw_crop(scans, 16, 0, n)
        assert (crop.shape, crop.dtype) == ((16, 16, 16), np.int16)
        inside = crop[:10] if (crop[10:] == AIR).all() else crop
        padded += inside is not crop
        assert foreground(inside, WINDOW) >= 0.05
    assert 8 < padded < 40  # a quarter of the scans


def test_the_brightest_crop_stands_in_where_every_draw_was_empty(tmp_path):
    hu = np.full((40, 40, 40), -1000, np.int16)
    hu[30:, 30:, 30:] = 40
    save(tmp_path / "raw" / "a.nii.gz", hu)
    dataset = ScanFiles(reader="files", name="ct", image="{case}.nii.gz")
    tiny = Preparation(max_draws=1)
    scans, _ = store(tmp_path, dataset, tmp_path / "raw", 8, tiny)
    crops = [draw_crop(scans, 8, 0, n) for n in range(20)]
    assert all(foreground(crop, WINDOW) >= 0.05 for crop in crops)
    assert sum((crop == 40).all() for crop in crops) > 10  # few draws hit the corner; the others fall back on it
    with pytest.raises(NemesisError, match="exclude"):
        draw_crop(scans, 40, 0, 0)


def test_the_table_counts_labels_and_knows_what_is_unknown(small):
    scans = small[0]
    table = evaluation_superpatches(scans, 16, list(ORGANS), {"ct": ORGANS}, 8)
    places = ["start_d", "start_h", "start_w", "valid_d", "valid_h", "valid_w"]
    assert list(table.columns) == ["scan", "dataset", "case", "patient", *places, "foreground", "easy", *ORGANS]
    assert list(table.groupby("case").size()) == [27, 9, 27, 27]
    for row in table.itertuples():
        hu = scans.hu(row.scan).read((row.start_d, row.start_h, row.start_w), (16, 16, 16), AIR)
        inside = hu[: row.valid_d, : row.valid_h, : row.valid_w]
        assert (np.delete(hu.ravel(), np.ravel_multi_index(np.indices(inside.shape), hu.shape).ravel()) == AIR).all()
        assert row.foreground == foreground(inside, WINDOW)
        assert row.easy == (row.foreground < 0.05)
        if row.case in "cd":
            assert (row.liver, row.aorta, row.spleen) == (-1, -1, -1)
            continue
        drawn = organs((10, 40, 36) if row.case == "b" else (34, 40, 36))
        box = drawn[row.start_d :, row.start_h :, row.start_w :][:16, :16, :16]
        assert row.liver == ((box == 1).sum() > 8)
        assert row.aorta == 0  # 8 voxels are not more than 8
        assert row.spleen == (0 if row.case == "a" else -1)  # partial: only organs that occur were drawn
    fewer = evaluation_superpatches(scans, 16, ["aorta"], {"ct": ORGANS}, 7)
    assert sorted(fewer.aorta.unique()) == [-1, 0, 1]
    assert set(fewer.case[fewer.aorta == 1]) == {"a", "b"}


def test_an_organ_that_nobody_labels(small):
    with pytest.raises(NemesisError, match="Did you mean 'liver'"):
        evaluation_superpatches(small[0], 16, ["livr"], {"ct": ORGANS}, 8)


def test_a_pool_and_an_index_of_different_files_do_not_go_together(small, tmp_path):
    _, cases, out = small
    pool = json.loads((out / "pool.json").read_text())
    pool["cases"][0]["fingerprint"] = "other"
    pool["cases"][1]["label_fingerprint"] = "other"
    pool["cases"].append(pool["cases"][2] | {"case": "new"})
    (tmp_path / "pool.json").write_text(json.dumps(pool))
    with pytest.raises(NemesisError) as caught:
        Scans(tmp_path / "pool.json", out / "index.parquet", Preparation())
    assert len(caught.value.faults) == 3
    write_pool(tmp_path / "pool.json", cases, labels=False)
    assert len(Scans(tmp_path / "pool.json", out / "index.parquet", Preparation())) == 4


def test_the_store_may_move(small, tmp_path):
    out = small[2]
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("pool.json", "index.parquet", "store"):
        (moved / name).symlink_to(out / name)
    scans = Scans(moved / "pool.json", moved / "index.parquet", Preparation())
    assert scans.hu(0).path.parent.absolute() == moved / "store"
    assert scans.labels(3) is None
    assert scans.labels(0).shape == scans.hu(0).shape == tuple(scans.row(0)["shape"])
    np.testing.assert_allclose(np.reshape(scans.row(0)["affine"], (4, 4)), RAS, atol=1e-5)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"needs the real scans in {REAL}")
def test_thin_real_slabs_give_superpatches_of_128(tmp_path):
    labels = {"exhaustive": "{case}/label.nii.gz", "partial": "{case}/label_partial.nii.gz"}
    labels["pseudo"] = "{case}/label_pseudo.nii.gz"
    scans, cases = store(tmp_path, ScanFiles(reader="files", name="ct", labels=labels), REAL / "ct", 128)
    assert len(cases) == 6
    table = evaluation_superpatches(scans, 128, ["aorta", "liver"], {"ct": label_numbers_of(scans)}, 100)
    assert not table.easy[table.aorta == 1].any()
    assert not table.easy[table.liver == 1].any()
    assert (table.liver[table.case == "ts_aorta"] == -1).all()


def label_numbers_of(scans):
    return label_numbers(ScanFiles(reader="files", name="ct"), REAL / "ct")


@pytest.mark.skipif(not REAL.is_dir(), reason=f"needs the real scans in {REAL}")
def test_openkbp_is_listed_with_what_was_drawn():
    dataset = NnunetFolder(reader="nnunet", name="openkbp")
    cases = list_cases(dataset, REAL / "openkbp")
    assert len(cases) == 170
    assert {case.kind for case in cases} == {"exhaustive", "partial"}
    assert all(set(case.annotated) <= set(label_numbers(dataset, REAL / "openkbp")) for case in cases)
