import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet
from small_scans import RAS, body, organs, save

from nemesis.config import Preparation
from nemesis.data import ingest as module
from nemesis.data.cases import write_manifest
from nemesis.data.foreground import BlockSums
from nemesis.data.gate import write_index
from nemesis.data.ingest import ingest
from nemesis.data.listings import label_numbers, list_cases
from nemesis.data.phantom import make_subject
from nemesis.data.readers import Volume, resample
from nemesis.data.store import StoredVolume
from nemesis.datasets import PhantomCohort, ScanFiles
from nemesis.errors import NemesisError

ORGANS = {"liver": 1, "aorta": 2, "spleen": 3}


def dataset(name="ct"):
    labels = {"exhaustive": "{case}/label.nii.gz"}
    return ScanFiles(reader="files", name=name, labels=labels, label_numbers=ORGANS)


def raw_scans(root, cases):
    for i, case in enumerate(cases):
        save(root / case / "image.nii.gz", body(seed=i), "LPS")
        save(root / case / "label.nii.gz", organs(), "LPS")


def run(root, out, some=None, preparation=Preparation(), superpatch=16, workers=0, exclude=(), largest=None):  # noqa: B008 - frozen
    some = some or dataset()
    write_manifest(out / "manifest.json", some, list_cases(some, root, exclude), label_numbers(some, root))
    ingest(out / "manifest.json", root, out / "store", out / "store/verdicts.json", preparation, superpatch, workers, largest)
    return {verdict["case"]: verdict for verdict in json.loads((out / "store" / "verdicts.json").read_text())["cases"]}


def stored(out, case, kind):
    """The stored HU or label map of a case."""
    (path,) = (out / "store").glob(f"{case}-*.{kind}.b2nd")
    return StoredVolume(path).whole()


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def counted(monkeypatch):
    """Which cases are read."""
    read = []
    original = module._files
    monkeypatch.setattr(module, "_files", lambda task: read.append(task.case.case) or original(task))
    return read


def test_a_good_scan_and_what_its_verdict_says(tmp_path):
    raw_scans(tmp_path / "raw", ["a"])
    verdict = run(tmp_path / "raw", tmp_path)["a"]
    hu, labels = (stored(tmp_path, "a", kind) for kind in ("hu", "labels"))
    np.testing.assert_array_equal(hu, body())
    np.testing.assert_array_equal(labels, organs())
    assert verdict["ok"]
    assert verdict["shape"] == [20, 24, 16]
    assert verdict["spacing"] == pytest.approx([3.0, 2.0, 1.5])
    np.testing.assert_allclose(np.reshape(verdict["affine"], (4, 4)), RAS, atol=1e-5)
    assert verdict["hu_mean"] == pytest.approx(hu.mean())
    assert verdict["hu_std"] == pytest.approx(hu.std())
    assert (verdict["hu_min"], verdict["hu_max"]) == (hu.min(), hu.max())
    assert verdict["voxels"] == {"liver": (labels == 1).sum(), "aorta": 8, "spleen": 0}
    assert verdict["annotated"] == ["liver", "aorta", "spleen"]
    assert 0 < verdict["foreground"] <= 1


def test_faulty_scans_are_all_named_and_good_ones_are_kept(tmp_path):
    raw = tmp_path / "raw"
    raw_scans(raw, ["good", "cut", "picture", "shape", "both", "blank", "numbers"])
    cut = raw / "cut/image.nii.gz"
    cut.write_bytes(cut.read_bytes()[:-20])
    save(raw / "picture/image.nii.gz", (body() + 1000).clip(0, 255).astype(np.uint8))
    save(raw / "shape/label.nii.gz", organs()[:-1])
    for name in ("image", "label"):
        (raw / f"both/{name}.nii.gz").write_bytes(b"nothing")
    empty = np.full((20, 24, 16), -1000, np.int16)
    empty[::4, ::4, ::4] = 40  # sparse tissue: CT by its values, but no crop is bright
    save(raw / "blank/image.nii.gz", empty)
    save(raw / "numbers/label.nii.gz", organs() * 20)
    verdicts = run(raw, tmp_path)
    assert [case for case, verdict in verdicts.items() if verdict["ok"]] == ["good"]
    with pytest.raises(NemesisError) as caught:
        write_index([tmp_path / "store/verdicts.json"], tmp_path / "index.parquet")
    told = {fault.where: str(fault) for fault in caught.value.faults}
    assert not (tmp_path / "index.parquet").exists()
    assert len(caught.value.faults) == len(told) == 7
    for path, what in {
        "cut/image": "truncated", "picture/image": "not CT", "shape/label": "another shape", "both/image": "not NIfTI",
        "both/label": "not NIfTI", "blank/image": "is empty", "numbers/label": "only 20, 40",
    }.items():  # fmt: skip
        fault = told[str(raw / f"{path}.nii.gz")]
        assert what in fault
        assert f"exclude: [ct/{path.split('/')[0]}]" in fault

    exclude = [f"ct/{case}" for case in verdicts if case != "good"]
    run(raw, tmp_path, exclude=exclude)
    write_index([tmp_path / "store/verdicts.json"], tmp_path / "index.parquet")
    assert parquet.read_table(tmp_path / "index.parquet")["case"].to_pylist() == ["good"]


def test_faults_of_several_datasets_are_told_at_once(tmp_path):
    for name in ("one", "two"):
        raw_scans(tmp_path / name / "raw", ["a", "b"])
        (tmp_path / name / "raw/b/image.nii.gz").write_bytes(b"")
        run(tmp_path / name / "raw", tmp_path / name, dataset(name))
    with pytest.raises(NemesisError) as caught:
        write_index([tmp_path / name / "store/verdicts.json" for name in ("two", "one")], tmp_path / "index.parquet")
    assert len(caught.value.faults) == 2


def test_only_what_changed_is_read_again(tmp_path, counted):
    raw = tmp_path / "raw"
    raw_scans(raw, ["a", "b", "c"])
    (raw / "c/image.nii.gz").write_bytes(b"not a scan")
    run(raw, tmp_path)
    run(raw, tmp_path)
    assert counted == ["a", "b", "c"]
    save(raw / "b/image.nii.gz", body(seed=9))
    run(raw, tmp_path)
    assert counted[3:] == ["b"]
    next((tmp_path / "store").glob("a-*.labels.b2nd")).unlink()
    run(raw, tmp_path)
    assert counted[4:] == ["a"]
    run(raw, tmp_path, preparation=Preparation(spacing_mm=(2.0, 2.0, 2.0)))
    assert counted[5:] == ["a", "b", "c"]


def test_what_kept_a_scan_from_being_read_may_pass(tmp_path, counted):
    raw = tmp_path / "raw"
    raw_scans(raw, ["a"])
    run(raw, tmp_path)
    shutil.rmtree(tmp_path / "store")
    raw.rename(tmp_path / "away")  # as a share of the network may be
    places = (tmp_path / "manifest.json", raw, tmp_path / "store")
    ingest(*places, tmp_path / "verdicts.json", Preparation(), 16, 0)
    (verdict,) = json.loads((tmp_path / "verdicts.json").read_text())["cases"]
    assert not verdict["ok"] and "--forcerun ingest_scans" in verdict["faults"][0]["remedy"]
    (tmp_path / "away").rename(raw)
    assert run(raw, tmp_path)["a"]["ok"] and counted == ["a"] * 3


def test_a_scan_too_large_for_memory_stops_no_other(tmp_path, monkeypatch):
    raw_scans(tmp_path / "raw", ["a", "b"])
    original = module._files

    def crowded(task):
        if task.case.case == "a":
            raise MemoryError
        return original(task)

    monkeypatch.setattr(module, "_files", crowded)
    verdicts = run(tmp_path / "raw", tmp_path)
    assert "memory" in verdicts["a"]["faults"][0]["what"] and verdicts["b"]["ok"]
    monkeypatch.setattr(module, "_files", original)
    assert run(tmp_path / "raw", tmp_path)["a"]["ok"]


@pytest.mark.parametrize("content", ["[]", "3", "null", "{", '{"identity": null}'])
def test_a_record_that_is_none_is_made_again(tmp_path, content, counted):
    raw_scans(tmp_path / "raw", ["a"])
    run(tmp_path / "raw", tmp_path)
    next((tmp_path / "store").glob("a-*.json")).write_text(content)
    assert run(tmp_path / "raw", tmp_path)["a"]["ok"] and counted == ["a", "a"]


def test_a_damaged_volume_is_made_again_where_it_is_looked_at(tmp_path, counted):
    raw_scans(tmp_path / "raw", ["a"])
    run(tmp_path / "raw", tmp_path)
    path = next((tmp_path / "store").glob("a-*.hu.b2nd"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    assert run(tmp_path / "raw", tmp_path, superpatch=8)["a"]["ok"]
    assert path.read_bytes() == whole and counted == ["a", "a"]


def test_a_view_of_a_scan_that_is_gone_is_tried_again(tmp_path):
    raw_scans(tmp_path / "raw", ["a"])
    run(tmp_path / "raw", tmp_path)
    path = next((tmp_path / "store").glob("a-*.hu.b2nd"))
    whole = path.read_bytes()
    places = (tmp_path / "manifest.json", tmp_path / "raw", tmp_path / "store", tmp_path / "views.json", Preparation(), 8, 0, 8)

    def made():
        ingest(*places, (2.0, 2.0, 2.0))
        return json.loads((tmp_path / "views.json").read_text())["cases"][0]

    path.unlink()
    assert "--forcerun resample_scans" in made()["faults"][0]["remedy"]
    path.write_bytes(whole)
    assert made()["ok"]


def test_what_killed_processes_left_is_removed_a_day_later(tmp_path):
    raw_scans(tmp_path / "raw", ["a"])
    old, new = (tmp_path / "store" / f".a-12345678.hu.b2nd.{name}" for name in ("abcdefgh", "ijklmnop"))
    old.parent.mkdir()
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, time.time() - module.ABANDONED - 60))
    run(tmp_path / "raw", tmp_path)
    assert new.exists() and not old.exists()


def test_foreground_maps_that_are_cut_short_are_no_air(tmp_path):
    raw_scans(tmp_path / "raw", ["a"])
    run(tmp_path / "raw", tmp_path)
    maps = tmp_path / "store/verdicts.maps"
    maps.write_bytes(maps.read_bytes()[:-1])
    with pytest.raises(NemesisError, match=r"verdicts\.maps: holds 3 bytes.*not 4.*--forcerun ingest_scans"):
        write_index([tmp_path / "store/verdicts.json"], tmp_path / "index.parquet")
    (tmp_path / "store/verdicts.json").write_text("{")
    with pytest.raises(NemesisError, match=r"verdicts\.json: cannot be read.*--forcerun ingest_scans"):
        write_index([tmp_path / "store/verdicts.json"], tmp_path / "index.parquet")


def test_another_window_floor_or_superpatch_reads_no_raw_scan(tmp_path, counted):
    raw = tmp_path / "raw"
    raw_scans(raw, ["a", "b"])
    first = run(raw, tmp_path, superpatch=5)
    wide, high = Preparation(hu_window=(-1300.0, 1000.0)), Preparation(foreground_floor=0.4)
    others = [{"preparation": wide}, {"preparation": high}, {"superpatch": 7}, {"largest": 16}]
    others = [{"superpatch": 5, **other} for other in others]
    told = [run(raw, tmp_path, **other) for other in others]
    assert counted == ["a", "b"]
    for kept in ("shape", "content_hash", "hu_histogram", "voxels"):
        assert all(verdicts["a"][kept] == first["a"][kept] for verdicts in told)
    shares = [verdicts["a"]["foreground"] for verdicts in (first, *told)]
    assert shares[0] == shares[4] and len(set(shares)) == 4
    shutil.rmtree(raw)
    fresh = tmp_path / "fresh"
    raw_scans(fresh / "raw", ["a", "b"])
    for n, (other, verdicts) in enumerate(zip(others, told, strict=True)):
        assert run(fresh / "raw", fresh / str(n), **other) == verdicts, other
    records = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "store").glob("*-*.json")}
    run(fresh / "raw", tmp_path, **others[0])
    assert {
        path.name: path.stat().st_mtime_ns for path in (tmp_path / "store").glob("*-*.json")
    } == records  # what was told is kept


def test_what_the_largest_superpatch_refuses_another_keeps(tmp_path, counted):
    raw = tmp_path / "raw"
    hu = np.full((40, 40, 40), -1000, np.int16)
    hu[:9, :9, :9] = 60
    save(raw / "a" / "image.nii.gz", hu)
    some = ScanFiles(reader="files", name="ct", label_numbers=ORGANS)
    assert run(raw, tmp_path, some, superpatch=8)["a"]["ok"]
    refused = run(raw, tmp_path, some, superpatch=8, largest=40)["a"]
    assert not refused["ok"] and "even its brightest superpatch of 40 voxels" in refused["faults"][0]["what"]
    assert run(raw, tmp_path, some, superpatch=8)["a"]["ok"] and counted == ["a"]


def test_one_more_case_is_all_that_is_read(tmp_path, counted):
    raw_scans(tmp_path / "raw", ["b", "c"])
    run(tmp_path / "raw", tmp_path)
    raw_scans(tmp_path / "raw", ["b", "c", "a"][2:])
    run(tmp_path / "raw", tmp_path)
    assert counted == ["b", "c", "a"]


def test_a_case_that_kills_its_process_is_refused_and_tried_again_by_the_next_run(tmp_path, monkeypatch, counted):
    raw_scans(tmp_path / "raw", ["a", "b"])
    plain = module.each

    def killed(function, tasks, workers):
        yield from plain(function, [task for task in tasks if task.case.case != "b"], workers)
        yield next(task for task in tasks if task.case.case == "b"), None

    with monkeypatch.context() as patched:
        patched.setattr(module, "each", killed)
        verdicts = run(tmp_path / "raw", tmp_path)
    assert verdicts["a"]["ok"] and "killed its process" in verdicts["b"]["faults"][0]["what"]
    assert verdicts["b"]["faults"][0]["where"] == str(tmp_path / "raw/b/image.nii.gz")
    assert run(tmp_path / "raw", tmp_path)["b"]["ok"] and counted == ["a", "b"]


def test_a_view_is_the_stored_scan_at_another_spacing(tmp_path, counted):
    raw_scans(tmp_path / "raw", ["a", "b"])
    run(tmp_path / "raw", tmp_path)
    shutil.rmtree(tmp_path / "raw")
    spacing = (1.5, 1.0, 3.0)
    views = tmp_path / "store/views.json"
    for _ in range(2):
        arguments = (tmp_path / "manifest.json", None, tmp_path / "store", views, Preparation(), 16, 0)
        ingest(*arguments, view=spacing)
    verdict = json.loads(views.read_text())["cases"][0]
    assert counted == ["a", "b"]
    assert verdict["stem"].endswith("@1.5x1x3") and verdict["kind"] == "exhaustive" and verdict["spacing"] == list(spacing)
    seen = StoredVolume(tmp_path / "store" / f"{verdict['stem']}.hu.b2nd").whole()
    np.testing.assert_array_equal(seen, resample(Volume(body(), (3.0, 2.0, 1.5), RAS), None, spacing)[0].hu)
    write_index([views], tmp_path / "index.parquet")
    (tmp_path / "store" / f"{verdict['stem'].partition('@')[0]}.json").unlink()
    (tmp_path / "store" / f"{verdict['stem']}.json").unlink()
    ingest(*arguments, view=spacing)
    assert "not in the store" in json.loads(views.read_text())["cases"][0]["faults"][0]["what"]


def test_an_interrupted_ingestion_goes_on_where_it_was(tmp_path, monkeypatch, counted):
    raw_scans(tmp_path / "raw", ["a", "b", "c"])
    write = module.write_volume

    def interrupted(folder, name, array):
        if name.startswith("b-") and name.endswith(".labels"):
            raise KeyboardInterrupt
        write(folder, name, array)

    monkeypatch.setattr(module, "write_volume", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "raw", tmp_path)
    assert not (tmp_path / "store/verdicts.json").exists()
    monkeypatch.setattr(module, "write_volume", write)
    run(tmp_path / "raw", tmp_path)
    assert counted == ["a", "b", "b", "c"]
    raw_scans(tmp_path / "raw2", ["a", "b", "c"])
    run(tmp_path / "raw2", tmp_path / "fresh")
    assert contents(tmp_path / "store") == contents(tmp_path / "fresh/store")


def test_a_full_disk_is_a_fault_not_a_bad_scan(tmp_path, monkeypatch):
    raw_scans(tmp_path / "raw", ["a"])
    monkeypatch.setattr(module, "write_volume", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(NemesisError, match="No space left"):
        run(tmp_path / "raw", tmp_path)


def test_workers_change_nothing(tmp_path):
    raw_scans(tmp_path / "raw", ["a", "b", "c"])
    (tmp_path / "raw/b/image.nii.gz").write_bytes(b"not a scan")
    for workers in (1, 2):
        run(tmp_path / "raw", tmp_path / str(workers), workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_killed_with_its_workers_and_run_again(tmp_path):
    raw_scans(tmp_path / "raw", [f"s{i:02d}" for i in range(40)])
    some = dataset()
    write_manifest(tmp_path / "manifest.json", some, list_cases(some, tmp_path / "raw"), ORGANS)
    code = (
        "from pathlib import Path\nfrom nemesis.config import Preparation\nfrom nemesis.data.ingest import ingest\n"
        "if __name__ == '__main__':\n"
        f"    t = Path({str(tmp_path)!r})\n"
        "    ingest(t / 'manifest.json', t / 'raw', t / 'store', t / 'store/verdicts.json', Preparation(), 16, 2)\n"
    )
    (tmp_path / "go.py").write_text(code)
    process = subprocess.Popen([sys.executable, tmp_path / "go.py"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    records = tmp_path / "store"
    deadline = time.monotonic() + 60
    while len(list(records.glob("*-*.json"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 20
    while any(_alive(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(child) for child in children)
    kept = {path: path.stat().st_mtime_ns for path in records.glob("*-*.json")}
    assert len(kept) >= 3
    assert not (tmp_path / "store/verdicts.json").exists() or len(kept) == 40
    verdicts = run(tmp_path / "raw", tmp_path)
    assert len(verdicts) == 40
    assert all(verdict["ok"] for verdict in verdicts.values())
    assert all(path.stat().st_mtime_ns == at for path, at in kept.items())


def _alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_resampled_on_the_way(tmp_path):
    raw_scans(tmp_path / "raw", ["a"])
    verdict = run(tmp_path / "raw", tmp_path, preparation=Preparation(spacing_mm=(1.5, 1.0, 1.5)))["a"]
    assert verdict["shape"] == [40, 48, 16]
    assert verdict["spacing"] == [1.5, 1.0, 1.5]
    assert verdict["voxels"]["aorta"] == 32
    coarse = run(tmp_path / "raw", tmp_path, preparation=Preparation(spacing_mm=(12.0, 12.0, 12.0)))["a"]
    assert not coarse["ok"]
    assert "after resampling" in coarse["faults"][0]["what"]


def test_phantoms_are_ingested_with_their_labels(tmp_path):
    cohort = PhantomCohort(reader="phantom", subjects=2, seed=3, base_spacing_mm=9.0)
    verdicts = run(None, tmp_path, cohort)
    assert list(verdicts) == ["0000", "0001"]
    subject = make_subject(3, 1, 9.0)
    np.testing.assert_array_equal(stored(tmp_path, "0001", "hu"), subject.hu)
    np.testing.assert_array_equal(stored(tmp_path, "0001", "labels"), subject.labels)
    assert verdicts["0001"]["voxels"]["liver"] == (subject.labels == 6).sum() > 0
    assert set(verdicts["0001"]["annotated"]) == set(label_numbers(cohort, None))
    np.testing.assert_allclose(np.reshape(verdicts["0001"]["affine"], (4, 4)), subject.affine)


def test_the_index_is_sorted_relative_and_reproducible(tmp_path):
    for i in (1, 2):
        for name in ("zeta", "alpha"):
            raw_scans(tmp_path / f"{name}/raw", ["b", "a"])
            run(tmp_path / f"{name}/raw", tmp_path / f"{i}/{name}", dataset(name))
        order = ("zeta", "alpha") if i == 1 else ("alpha", "zeta")
        write_index([tmp_path / f"{i}/{name}/store/verdicts.json" for name in order], tmp_path / f"{i}/index.parquet")
    assert (tmp_path / "1/index.parquet").read_bytes() == (tmp_path / "2/index.parquet").read_bytes()
    table = parquet.read_table(tmp_path / "1/index.parquet")
    rows = table.to_pylist()
    assert [(row["dataset"], row["case"]) for row in rows] == [(n, c) for n in ("alpha", "zeta") for c in "ab"]
    assert {str(Path(row["store"]).parent) for row in rows} == {"alpha/store", "zeta/store"}
    assert str(tmp_path) not in str(rows)
    assert all(math.isfinite(row["hu_std"]) and len(row["affine"]) == 16 for row in rows)
    maps = np.fromfile(tmp_path / "1/index.maps", np.uint8)
    np.testing.assert_array_equal(maps, np.fromfile(tmp_path / "2/index.maps", np.uint8))
    for row in rows:
        hu = StoredVolume(tmp_path / "1" / f"{row['store']}.hu.b2nd").whole()
        coarse = BlockSums(hu, (-175.0, 250.0)).map().ravel()
        np.testing.assert_array_equal(maps[row["map_offset"] :][: coarse.size], coarse)
    assert dict(rows[0]["voxels"])["aorta"] == 8 and rows[0]["notes"] == [] and rows[0]["hu_window"] == [-175.0, 250.0]
    assert rows[0]["content_hash"] != rows[1]["content_hash"]
    assert rows[0]["content_hash"] == rows[2]["content_hash"]  # the same scan in another dataset


def test_an_exhaustive_map_without_any_organ_says_that_none_is_there(tmp_path):
    raw_scans(tmp_path / "raw", ["a"])
    save(tmp_path / "raw/a/label.nii.gz", np.zeros_like(organs()), "LPS")
    verdict = run(tmp_path / "raw", tmp_path)["a"]
    assert verdict["ok"] and verdict["annotated"] == list(ORGANS) and set(verdict["voxels"].values()) == {0}
