"""A file that did not change is not looked at again, and one that changed always is."""

import os
import sqlite3
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nemesis.data import seen as module
from nemesis.data.seen import Seen, fingerprint


@pytest.fixture(autouse=True)
def settled(monkeypatch):
    """Files of this test count as old enough to be remembered."""
    monkeypatch.setattr(module, "SETTLED", -1.0)


@pytest.fixture
def looks():
    """Names of the files that were looked at; called as the look."""

    class Looks(list):
        def __call__(self, path):
            self.append(path.name)
            return fingerprint(path)

    return Looks()


def at(memory, files, look, what="mark"):
    with Seen(memory) as seen:
        return [seen.of(file, what, look) for file in files]


def made(folder, *names):
    for name in names:
        (folder / name).write_text(f"content of {name}")
    return [folder / name for name in names]


def test_what_did_not_change_is_not_looked_at_again(tmp_path, looks):
    files = made(tmp_path, "a", "b")
    first = at(tmp_path / "data/seen.db", files, looks)
    assert at(tmp_path / "data/seen.db", files, looks) == first and looks == ["a", "b"]
    assert at(tmp_path / "data/seen.db", files[:1], lambda _: {"x": [1, None]}, "other") == [{"x": [1, None]}]
    assert at(tmp_path / "data/seen.db", files[:1], None, "other") == [{"x": [1, None]}]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.sampled_from(["write", "same length", "same times", "replace", "nothing"]), min_size=1, max_size=6))
def test_a_change_is_never_missed(tmp_path, changes):
    file, memory = tmp_path / "file", tmp_path / "seen.db"
    file.write_bytes(b"0" * 40)
    for n, change in enumerate(changes, 1):
        before = file.stat()
        new = str(n % 10).encode() * (40 if change != "write" else 40 + n)
        if change == "replace":
            (tmp_path / "new").write_bytes(new)
            os.replace(tmp_path / "new", file)
        elif change != "nothing":
            file.write_bytes(new)
        if change in ("same times", "replace"):  # as rsync and cp -p leave them
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert at(memory, [file], fingerprint) == [fingerprint(file)]


def test_a_file_that_may_change_within_its_time_stamp_is_not_remembered(tmp_path, looks, monkeypatch):
    monkeypatch.setattr(module, "SETTLED", 3600.0)
    files = made(tmp_path, "young")
    for _ in range(2):
        at(tmp_path / "seen.db", files, looks)
    assert looks == ["young", "young"] and not (tmp_path / "seen.db").exists()


@pytest.mark.parametrize("damage", ["text", "cut", "table", "value"])
def test_a_damaged_memory_is_made_again(tmp_path, looks, damage, caplog):
    files, memory = made(tmp_path, *"abc"), tmp_path / "seen.db"
    first = at(memory, files, looks)
    if damage == "text":
        memory.write_text("no database at all, but long enough to be looked at " * 100)
    elif damage == "cut":
        memory.write_bytes(memory.read_bytes()[:5000])
    else:
        with sqlite3.connect(memory) as connection:
            connection.execute("DROP TABLE seen" if damage == "table" else "UPDATE seen SET value = '{'")
            if damage == "table":
                connection.execute("CREATE TABLE seen (other TEXT)")
    assert at(memory, files, looks) == first
    assert looks == [*"abc", *"abc"] and (damage == "cut" or str(memory) in caplog.text)
    if damage != "table":  # of another program, it seems: left alone
        assert at(memory, files, looks) == first and len(looks) == 6


def test_where_nothing_can_be_written_everything_is_looked_at(tmp_path, looks, caplog):
    files = made(tmp_path, "a")
    (tmp_path / "data").write_text("a file where the folder should be")
    assert at(tmp_path / "data/seen.db", files, looks) == [fingerprint(files[0])]
    assert "cannot be used" in caplog.text
    assert at(None, files, looks) == [fingerprint(files[0])] and looks == ["a", "a"]


def test_an_interrupted_listing_keeps_what_it_saw(tmp_path, looks, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 2)
    files = made(tmp_path, *"abcde")
    seen = Seen(tmp_path / "seen.db")
    seen.__enter__()
    for file in files:
        seen.of(file, "mark", looks)  # never left: the process was killed
    at(tmp_path / "seen.db", files, looks)
    assert looks == [*"abcde", "e"]


def test_workflows_share_the_memory_at_the_same_time(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BATCH", 1)
    files, answers = made(tmp_path, *(f"{n:03d}" for n in range(100))), {}

    def listing(n):
        answers[n] = at(tmp_path / "seen.db", files, fingerprint)

    threads = [threading.Thread(target=listing, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(answers[n] == [fingerprint(file) for file in files] for n in range(4))
    with sqlite3.connect(tmp_path / "seen.db") as connection:
        assert connection.execute("SELECT count(*) FROM seen").fetchone() == (100,)


def test_a_file_that_is_not_there_is_no_matter_of_the_memory(tmp_path, looks):
    with Seen(tmp_path / "seen.db") as seen, pytest.raises(FileNotFoundError):
        seen.of(tmp_path / "none", "mark", looks)
