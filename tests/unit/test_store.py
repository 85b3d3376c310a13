import gzip
import multiprocessing
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import blosc2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stored_scans import blobs

from nemesis.data.store import AIR, StoredVolume, normalise, write_volume
from nemesis.errors import NemesisError
from nemesis.files import write_bytes


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    array = np.random.default_rng(0).integers(-1024, 3000, (70, 33, 90)).astype(np.int16)
    write_volume(folder, "scan", array)
    return StoredVolume(folder / "scan.b2nd"), array


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_box_is_read_and_padded_at_the_far_ends(volume, data):
    stored, array = volume
    start = tuple(data.draw(st.integers(0, n - 1)) for n in array.shape)
    size = tuple(data.draw(st.integers(1, 80)) for _ in range(3))
    expected = np.pad(array, [(0, 80)] * 3, constant_values=AIR)[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))]
    box = stored.read(start, size, AIR)
    np.testing.assert_array_equal(box, expected)
    assert box.dtype == np.int16


def test_a_start_outside_is_an_error(volume):
    for start in ((-1, 0, 0), (70, 0, 0)):
        with pytest.raises(ValueError, match="outside"):
            volume[0].read(start, (4, 4, 4), AIR)


def test_whole_and_shape(volume):
    stored, array = volume
    assert stored.shape == array.shape
    np.testing.assert_array_equal(stored.whole(), array)


def test_equal_arrays_give_equal_bytes_and_compress(tmp_path):
    array = np.zeros((40, 41, 42), np.uint8)
    array[10:20] = 3
    write_volume(tmp_path, "a", array)
    write_volume(tmp_path, "b", np.asfortranarray(array))
    data = (tmp_path / "a.b2nd").read_bytes()
    assert data == (tmp_path / "b.b2nd").read_bytes()
    assert len(data) < array.nbytes / 5
    stored = StoredVolume(tmp_path / "a.b2nd").whole()
    assert stored.dtype == np.uint8
    np.testing.assert_array_equal(stored, array)
    assert not list(tmp_path.glob("*.tmp"))


def _check(stored, array, seed):
    rng = np.random.default_rng(seed)
    for _ in range(200):
        start = tuple(int(rng.integers(0, n - 20)) for n in array.shape)
        box = stored.read(start, (20, 20, 20), AIR)
        np.testing.assert_array_equal(box, array[tuple(slice(a, a + 20) for a in start)])


def test_threads_forks_and_pickles_read_alike(volume):
    stored, array = volume
    stored.whole()  # opened before it is shared
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda seed: _check(stored, array, seed), range(4)))
    _check(pickle.loads(pickle.dumps(stored)), array, 9)
    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=_check, args=(stored, array, seed)) for seed in range(3)]
    for child in children:
        child.start()
    _check(stored, array, 5)
    for child in children:
        child.join(60)
        assert child.exitcode == 0


def test_normalise():
    hu = np.array([-1024, -175, 37, 250, 3000], np.int16)
    unit = normalise(hu, (-175.0, 250.0))
    assert unit.dtype == np.float32
    np.testing.assert_allclose(unit, [0, 0, 212 / 425, 1, 1], rtol=1e-6)


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_bytes(path, b"old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"


def test_a_volume_that_is_gone_says_what_to_delete(tmp_path):
    with pytest.raises(NemesisError, match=r"is missing from the store.*--forcerun ingest_scans"):
        StoredVolume(tmp_path / "gone.b2nd").whole()


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "flipped"])
def test_a_damaged_volume_says_what_to_delete(tmp_path, damage):
    write_volume(tmp_path, "a", np.random.default_rng(0).integers(-1000, 1000, (40, 40, 40), dtype=np.int16))
    path = tmp_path / "a.b2nd"
    whole = bytearray(path.read_bytes())
    whole[500:-500:97] = bytes(byte ^ 0x5A for byte in whole[500:-500:97])
    path.write_bytes({"cut": whole[: len(whole) // 2], "empty": b"", "text": b"hello" * 99, "flipped": whole}[damage])
    with pytest.raises(NemesisError, match=r"a\.b2nd: is damaged.*Delete it.*--forcerun ingest_scans"):
        StoredVolume(path).whole()


def test_another_volume_in_the_place_of_one_is_told(tmp_path):
    write_volume(tmp_path, "a@2x2x2.hu", np.zeros((16, 16, 16), np.int16))
    stored = pickle.loads(pickle.dumps(StoredVolume(tmp_path / "a@2x2x2.hu.b2nd", (16, 16, 17))))
    with pytest.raises(NemesisError, match=r"is not the volume that was stored there.*--forcerun resample_scans"):
        stored.read((0, 0, 0), (8, 8, 32), AIR)


def body(masked):
    """A body of smooth noise and its noise, in noisy air or masked out of it."""
    hu = blobs((96, 128, 128), 1)
    if masked:
        _, h, w = np.indices(hu.shape)
        hu[(h - 64) ** 2 + (w - 64) ** 2 > 28**2] = -1024
    return hu


@pytest.mark.parametrize(
    "array", [body(False), body(True), (body(True) > 0).astype(np.uint8) * 6], ids=["CT", "masked", "labels"]
)
def test_a_stored_volume_is_no_larger_than_its_nii_gz(tmp_path, array):
    write_volume(tmp_path, "a", array)
    assert (tmp_path / "a.b2nd").stat().st_size <= len(gzip.compress(array.tobytes(), 6))
    stored = StoredVolume(tmp_path / "a.b2nd")
    np.testing.assert_array_equal(stored.whole(), array)
    np.testing.assert_array_equal(stored.read((13, 14, 15), (70, 60, 50), AIR), array[13:83, 14:74, 15:65])


def test_zstandard_is_taken_only_where_it_saves_much(tmp_path):
    names = {}
    for masked in (False, True):
        write_volume(tmp_path, "a", body(masked))
        names[masked] = blosc2.open(str(tmp_path / "a.b2nd")).schunk.cparams.codec
    assert names == {False: blosc2.Codec.LZ4HC, True: blosc2.Codec.ZSTD}


def test_writing_takes_no_memory_for_the_whole_file(tmp_path):
    code = (
        "import resource, sys\nfrom pathlib import Path\nimport numpy as np\nfrom nemesis.data.store import write_volume\n"
        "array = np.random.default_rng(0).integers(-1000, 1000, (512, 256, 256), dtype=np.int16)\n"
        "write_volume(Path(sys.argv[1]), 'small', array[:64, :64, :64])\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "write_volume(Path(sys.argv[1]), 'large', array)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 16 * 1024  # KiB, of an array of 64 MiB


FULL = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from nemesis.data.store import write_volume

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    write_volume(Path(sys.argv[1]), "a", np.random.default_rng(0).integers(0, 999, (64, 64, 64), dtype=np.int16))
except OSError as error:
    print("told", error)
"""


def test_a_disk_that_is_full_is_told_and_nothing_is_left(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL, tmp_path], capture_output=True, text=True, check=True)
    assert "told is there room?" in done.stdout and not list(tmp_path.iterdir())


def test_an_interrupted_volume_leaves_nothing(tmp_path, monkeypatch):
    import nemesis.data.store as store

    monkeypatch.setattr(store, "_pack", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_volume(tmp_path, "a", np.zeros((8, 8, 8), np.int16))
    assert not list(tmp_path.iterdir())
