"""Pools of scans: opened lazily, few at a time, however many there are."""

import builtins
import json
import os
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stored_scans import blobs, store_scans

from nemesis.config import Preparation
from nemesis.data import scans as module
from nemesis.data.scans import Scans
from nemesis.data.store import AIR
from nemesis.data.superpatches import draw_crop
from nemesis.errors import NemesisError


@pytest.fixture
def stored(tmp_path):
    volumes = [blobs((24 + n, 30, 20), n) for n in range(6)]
    return store_scans(tmp_path, volumes), volumes, tmp_path


def test_nothing_is_touched_before_it_is_read(stored, monkeypatch):
    folder = stored[2]
    for file in folder.glob("*.b2nd"):
        file.unlink()
    (folder / "index.maps").unlink()
    scans = Scans(folder / "pool.json", folder / "index.parquet", Preparation())
    assert len(scans) == 6 and scans.shape(3) == (27, 30, 20)
    scans.hu(3)
    with pytest.raises(NemesisError, match=r"s003\.hu\.b2nd: is missing from the store"):
        scans.hu(3).read((0, 0, 0), (4, 4, 4), AIR)
    with pytest.raises(NemesisError, match=r"index\.maps: cannot be read"):
        draw_crop(scans, 16, 0, 0)


def test_a_hundred_thousand_scans_are_opened_and_drawn_from_without_a_look_at_their_files(tmp_path, monkeypatch):
    count = 100_000
    names = [f"s{n:06d}" for n in range(count)]
    members = {"dataset": ["ct"] * count, "case": names, "patient": names, "fingerprint": names}
    columns = members | {"kind": ["none"] * count, "label_fingerprint": [""] * count, "store": names}
    columns |= {"shape": [[64, 64, 64]] * count, "hu_window": [[-175.0, 250.0]] * count, "map_offset": [0] * count}
    pq.write_table(pa.table(columns), tmp_path / "index.parquet")
    np.zeros(64, np.uint8).tofile(tmp_path / "index.maps")
    cases = [dict(zip(members, row, strict=True), label_fingerprint=None) for row in zip(*members.values(), strict=True)]
    (tmp_path / "pool.json").write_text(json.dumps({"cases": cases}))
    opened = []
    plain = builtins.open
    monkeypatch.setattr(builtins, "open", lambda file, *more, **named: opened.append(str(file)) or plain(file, *more, **named))
    monkeypatch.setattr(
        os, "stat", lambda path, *more, plain=os.stat, **named: opened.append(str(path)) or plain(path, *more, **named)
    )
    scans = Scans(tmp_path / "pool.json", tmp_path / "index.parquet", Preparation())
    monkeypatch.setattr(Scans, "brightest", lambda self, i, edge: (_ for _ in ()).throw(LookupError(i)))
    drawn = set()
    for number in range(50):
        with pytest.raises(LookupError) as caught:  # every map says air
            draw_crop(scans, 32, 0, number)
        drawn.add(caught.value.args[0])
    assert len(drawn) == 50 and len(scans) == count
    assert not [file for file in opened if Path(file).name.startswith("s0")]


def test_few_files_are_open_at_a_time(stored, monkeypatch):
    folder = stored[2]
    monkeypatch.setattr(module, "OPEN", 2)
    scans = Scans(folder / "pool.json", folder / "index.parquet", Preparation())
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        for i, hu in enumerate(stored[1]):
            np.testing.assert_array_equal(scans.hu(i).whole(), hu)
            assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_scans_travel_to_other_processes(stored):
    scans, volumes, _ = stored
    crops = [draw_crop(scans, 16, 3, n) for n in range(6)]  # maps and volumes are open
    again = pickle.loads(pickle.dumps(scans))
    assert len(pickle.dumps(scans)) < 20_000 and len(again) == 6
    for n, crop in enumerate(crops):
        np.testing.assert_array_equal(draw_crop(again, 16, 3, n), crop)
    np.testing.assert_array_equal(again.hu(2).whole(), volumes[2])


@pytest.mark.parametrize(("sampling", "expected"), [("scan", [1, 1, 1]), ("dataset", [1, 1, 2]), ("size", [3, 1, 2])])
def test_whose_turn_is_equally_likely(tmp_path, sampling, expected):
    shapes = [(48, 16, 16), (16, 16, 16), (32, 16, 16)]
    scans = store_scans(tmp_path, [np.full(shape, 40, np.int16) for shape in shapes], datasets=["a", "a", "b"])
    drawn = Counter(scans.draw(np.random.default_rng(n), sampling) for n in range(3000))
    shares = [drawn[i] / 3000 for i in range(3)]
    assert shares == pytest.approx([part / sum(expected) for part in expected], abs=0.04)


def test_the_default_draw_is_that_of_every_scan_alike(stored):
    scans = stored[0]
    for n in range(20):
        assert scans.draw(np.random.default_rng(n), "scan") == np.random.default_rng(n).integers(6)
        np.testing.assert_array_equal(draw_crop(scans, 16, 1, n), draw_crop(scans, 16, 1, n, "scan"))


def test_an_index_for_another_window_is_refused(stored):
    folder = stored[2]
    with pytest.raises(NemesisError, match=r"made for the window \[-175.0, 250.0\], not \[-100.0, 250.0\]"):
        Scans(folder / "pool.json", folder / "index.parquet", Preparation(hu_window=(-100.0, 250.0)))


@pytest.mark.parametrize("content", [None, b"", b"PAR1 and no more"])
def test_an_index_that_is_damaged_or_gone_is_told(stored, content):
    index = stored[2] / "index.parquet"
    index.unlink() if content is None else index.write_bytes(content)
    with pytest.raises(NemesisError, match=r"index\.parquet: cannot be read.*--forcerun check_cohort"):
        Scans(stored[2] / "pool.json", index, Preparation())


def test_maps_that_are_cut_short_are_refused(stored):
    folder = stored[2]
    (folder / "index.maps").write_bytes((folder / "index.maps").read_bytes()[:-1])
    scans = Scans(folder / "pool.json", folder / "index.parquet", Preparation())
    with pytest.raises(NemesisError, match="cut short"):
        draw_crop(scans, 16, 0, 0)
