"""Devices: one GPU is never lent twice, whoever finds none waits; what is asked for and not there is a sentence."""

import subprocess
import sys
import tempfile
import threading
from contextlib import ExitStack

import pytest
import torch
from filelock import FileLock, Timeout

from nemesis.errors import NemesisError
from nemesis.training import device as module
from nemesis.training.device import _lock_one, device_for, resolve_precision


@pytest.fixture(autouse=True)
def own_locks(tmp_path, monkeypatch):
    """Locks beside those of real jobs."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_holders_get_distinct_devices_and_the_next_one_waits():
    names, found = ["a", "b"], []
    first, second, third = ExitStack(), ExitStack(), ExitStack()
    assert (_lock_one(names, first), _lock_one(names, second)) == (0, 1)
    waiting = threading.Thread(target=lambda: found.append(_lock_one(names, third, poll_s=0.01)), daemon=True)
    waiting.start()
    waiting.join(timeout=0.2)
    assert waiting.is_alive() and not found
    second.close()
    waiting.join(timeout=10)
    assert found == [1]
    third.close()
    first.close()
    with ExitStack() as stack:
        assert _lock_one(names, stack) == 0


def test_no_device_is_held_twice_at_any_time():
    names, held, clashes, guard = ["a", "b", "c"], set(), [], threading.Lock()

    def job():
        for _ in range(5):
            with ExitStack() as stack:
                mine = _lock_one(names, stack, poll_s=0.001)
                with guard:
                    clashes.extend([mine] * (mine in held))
                    held.add(mine)
                with guard:
                    held.discard(mine)

    jobs = [threading.Thread(target=job, daemon=True) for _ in range(6)]
    for thread in jobs:
        thread.start()
    for thread in jobs:
        thread.join(timeout=60)
    assert not clashes and not any(thread.is_alive() for thread in jobs)


def test_a_lock_falls_free_when_its_job_fails():
    def job():
        with ExitStack() as stack:
            _lock_one(["a"], stack)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        job()
    with ExitStack() as stack:
        assert _lock_one(["a"], stack) == 0


def test_cuda_without_a_gpu_is_a_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(NemesisError, match="no GPU is visible") as caught, device_for("cuda"):
        pass
    assert "device: cpu" in caught.value.faults[0].remedy
    with device_for("auto") as device:
        assert device.type == "cpu"


def test_cpu_is_taken_where_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: pytest.fail("no GPU was asked for"))
    with device_for("cpu") as device:
        assert device == torch.device("cpu")


def test_auto_takes_a_gpu_that_is_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    uuids = [type("Properties", (), {"uuid": name}) for name in ("gpu-a", "gpu-b")]
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: uuids[index])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda index: None)
    with device_for("auto") as one, device_for("auto") as two:
        assert (one, two) == (torch.device("cuda", 0), torch.device("cuda", 1))


def test_the_peak_of_a_gpu_is_that_of_its_holder_who_gives_the_cache_back_before_the_gpu(monkeypatch, tmp_path):
    """Of two runs of one process the second neither shows the first one's peak nor keeps its memory from others."""
    seen = []

    def free():
        lock = FileLock(*tmp_path.rglob("gpu-a.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return False
        lock.release()
        return True

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: type("Properties", (), {"uuid": "gpu-a"}))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda index: seen.append(("reset", index, free())))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: seen.append(("emptied", free())))

    def job():
        with device_for("cuda"):
            seen.append("computed")
            raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            job()
    assert seen == [("reset", 0, False), "computed", ("emptied", False)] * 2 and free()


@pytest.mark.parametrize(("bf16", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_auto_precision_is_what_the_device_computes(monkeypatch, bf16, expected):
    monkeypatch.setattr(module, "_convolve_in_32_bits", lambda: None)
    monkeypatch.setattr(module.torch.cpu, "get_capabilities", lambda: {"avx512_bf16": bf16})
    monkeypatch.setattr(module.torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    assert resolve_precision("auto", torch.device("cpu")) == expected
    assert resolve_precision("auto", torch.device("cuda", 0)) == expected
    assert resolve_precision("32-true", torch.device("cpu")) == "32-true"
    assert resolve_precision("bf16-mixed", torch.device("cpu")) == "bf16-mixed"


CONVOLVE = """
import torch
from torch import nn
from torch.nn.functional import conv3d
from nemesis.training import device

torch.cpu.get_capabilities = lambda: {"avx512_bf16": True}
assert device.resolve_precision("auto", torch.device("cpu")) == "bf16-mixed"
x, weight = torch.randn(2, 48, 2, 2, 2), torch.randn(96, 48, 3, 3, 3, requires_grad=True)

def gradient(precision, **settings):
    with device.arithmetic(torch.device("cpu"), precision):
        found = conv3d(x, weight, **settings)
        assert nn.Linear(2, 3)(x).dtype == (torch.bfloat16 if precision == "bf16-mixed" else torch.float32)
    assert found.dtype == torch.float32
    return torch.autograd.grad(found.square().sum(), weight)[0]

for settings in ({"padding": 1}, {"padding": "same"}):
    assert torch.equal(gradient("bf16-mixed", **settings), gradient("32-true", **settings))
with device.arithmetic(torch.device("cpu"), "bf16-mixed"):
    assert nn.ConvTranspose3d(48, 2, 2)(x.bfloat16()).dtype == torch.float32
"""


def test_without_amx_volumes_are_convolved_in_32_bits_and_matrices_multiplied_in_bf16():
    """In a process of its own, as it holds for all of one."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", CONVOLVE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_with_amx_and_in_32_bits_convolutions_are_left_alone(monkeypatch):
    monkeypatch.setattr(module, "_convolve_in_32_bits", lambda: pytest.fail("nothing asked for it"))
    monkeypatch.setattr(module.torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True, "amx_bf16": True})
    assert resolve_precision("auto", torch.device("cpu")) == "bf16-mixed"
    assert resolve_precision("32-true", torch.device("cpu")) == "32-true"
