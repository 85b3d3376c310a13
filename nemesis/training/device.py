"""Where a process computes: the device, its arithmetic, and a lock that never hands one GPU to two jobs of this machine."""

from __future__ import annotations

import getpass
import os
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from nemesis.errors import Fault, NemesisError

Precision = Literal["32-true", "bf16-mixed"]


@contextmanager
def device_for(wanted: str) -> Iterator[torch.device]:
    """The CPU, or a GPU that no other job of this user on this machine holds; waits for one to become free.

    The peak of a GPU's memory is counted anew; what is cached of it is given back before another job may hold it.

    Args:
        wanted: auto (a GPU where there is one), cpu or cuda.

    Raises:
        NemesisError: cuda was asked for and there is none.
    """
    n_gpus = torch.cuda.device_count() if wanted != "cpu" else 0
    if not n_gpus:
        if wanted == "cuda":
            raise NemesisError(
                Fault(
                    "device: cuda",
                    "no GPU is visible to this job",
                    "Ask for one (on a cluster: gpu=1), or set device: cpu",
                )
            )
        yield torch.device("cpu")
        return
    with ExitStack() as stack:
        index = _lock_one([str(torch.cuda.get_device_properties(i).uuid) for i in range(n_gpus)], stack)
        torch.cuda.reset_peak_memory_stats(index)
        stack.callback(torch.cuda.empty_cache)
        yield torch.device("cuda", index)


def _lock_one(names: list[str], stack: ExitStack, poll_s: float = 1.0) -> int:
    """Place of the first name whose lock is free; held until ``stack`` closes (or the process dies)."""
    folder = Path(tempfile.gettempdir()) / f"nemesis-gpus-{getpass.getuser()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    while True:
        for index, name in enumerate(names):
            try:
                stack.enter_context(FileLock(folder / f"{name}.lock").acquire(timeout=0))
                return index
            except Timeout:
                continue
        time.sleep(poll_s)


def resolve_precision(wanted: Precision | Literal["auto"], device: torch.device) -> Precision:
    """``auto`` → bf16-mixed where the device computes bf16 in hardware, else 32-true.

    Where a CPU without AMX is to compute in bf16-mixed, this process convolves volumes in 32 bits from here on.
    """
    able = torch.cpu.get_capabilities()
    if wanted == "auto":
        gpu = device.type == "cuda"
        known = torch.cuda.is_bf16_supported(including_emulation=False) if gpu else able.get("avx512_bf16")
        wanted = "bf16-mixed" if known else "32-true"
    if wanted == "bf16-mixed" and device.type == "cpu" and not able.get("amx_bf16"):
        _convolve_in_32_bits()
    return wanted


@cache
def _convolve_in_32_bits() -> torch.library.Library:
    """Take convolutions of volumes out of what autocast computes in bf16 on a CPU, for as long as the returned library lives.

    Without AMX oneDNN 3 gives the weights of a 3³ convolution over 2³ voxels, or of a 7³ one over 4³, gradients that are wrong by
    their own size, or infinite (seen on AMD's CPUs with AVX-512 bf16). Products of matrices are right there, and twice as fast.
    """
    library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    aten = torch.ops.aten
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*Overriding a previously registered kernel")  # which is the purpose
        for operator in (aten.conv3d.default, aten.conv3d.padding, aten.conv_transpose3d.input):
            library.impl(operator, partial(_in_32_bits, operator), "AutocastCPU")  # type: ignore[no-untyped-call]
    return library


def _in_32_bits(operator: Callable[..., Tensor], *inputs: Any) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return operator(*(x.float() if isinstance(x, Tensor) else x for x in inputs))


def set_threads(threads: int) -> None:
    """Fix the CPU thread count of this process: it decides how sums are split, hence the last bits."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)


def arithmetic(device: torch.device, precision: Precision) -> torch.autocast:
    """The context in which a frozen network computes."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed")


def peak_memory_mib(device: torch.device) -> float:
    """Of a GPU since :func:`device_for` handed it out. On a CPU it is the process's largest resident size since it began: of a
    process that computes one run after another, as the workers of a search do, that of the largest so far.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss is in bytes there, in KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
