import multiprocessing
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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
