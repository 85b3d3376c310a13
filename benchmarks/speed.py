"""How fast the NEMESIS network trains, reconstructs and embeds, beside a plain implementation of the same network.

    python -m benchmarks.speed training --embed-dim 768 --patch 16 --batch 4

Both alternate in one process on the same superpatches, and medians are printed, so that a busy machine slows both. Peak memory is
that of a process of its own for each. The share of the matmul rate counts the multiply–accumulates of the plain network (a
training step as three forward passes), whatever was saved of them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.reference import PlainMAE, masks_by_loop
from nemesis.evaluation.formula import by_formula
from nemesis.files import write_text
from nemesis.models.architecture import OFFICIAL, Architecture
from nemesis.models.autoencoder import MaskedAutoencoder
from nemesis.models.keyed import Keys
from nemesis.models.masking import Masking, draw_mask, nothing_masked
from nemesis.training.device import arithmetic, peak_memory_mib, resolve_precision

Step = Callable[[], None]


def main() -> None:
    """Parse, measure, print, and keep the figures where ``--out`` says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("--superpatch", type=int, default=128)
    parser.add_argument("--patch", type=int, default=16)
    parser.add_argument("--embed-dim", type=int, default=768)
    parser.add_argument("--ratio", type=float, default=0.5, help="mask ratio on each axis")
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7, help="timed steps of each; the first one is thrown away")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile the suite's network")
    parser.add_argument("--recompute", action="store_true", help="activation checkpointing in the suite's network")
    parser.add_argument("--alone", action="store_true", help="without the plain network (batches that it has no memory for)")
    parser.add_argument("--profile", action="store_true", help="print where the suite's step spends its time")
    parser.add_argument("--out", type=Path, help="JSON file to keep the figures in")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    names = ["suite"] if a.alone else ["plain", "suite"]
    memory = {name: _in_a_process(_peak_memory, a, name) for name in names}
    seconds = _alternate(a, names)
    rates = {name: matmul_rate(dtype, a.device) for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))}
    found = report(a, seconds, memory, rates)
    print_table(found)
    if a.profile:
        _profile(a)
    if a.out:
        write_text(a.out, json.dumps(found, indent=1) + "\n")


def _training(a: argparse.Namespace, name: str) -> Step:
    architecture, masking, x = _setting(a)
    network: Any = _network(a, name, architecture)
    network.train()
    fused = name == "suite"
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=fused)
    count = 0

    def plain() -> None:
        finish(network(x, masks_by_loop(architecture.grid, masking, a.batch).to(a.device)))

    def suite() -> None:
        nonlocal count
        scores = Keys.at(0, count, range(a.batch), a.device).uniform("mask", architecture.grid[0] ** 3)
        count += 1
        with arithmetic(torch.device(a.device), resolve_precision("auto", torch.device(a.device))):
            loss = network(x, draw_mask(architecture.grid, masking, scores)).loss
        finish(loss)

    def finish(loss: Any) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()

    return plain if name == "plain" else suite


def _embedding(a: argparse.Namespace, name: str) -> Step:
    architecture, _, x = _setting(a)
    network: Any = _network(a, name, architecture)
    network.eval()
    embed = network.embed if name == "plain" else network.encoder.embed
    if a.compile and name == "suite":
        embed = torch.compile(embed)

    @torch.no_grad()
    def step() -> None:
        with arithmetic(x.device, resolve_precision("auto" if name == "suite" else "32-true", x.device)):
            embed(x)

    return step


def _inference(a: argparse.Namespace, name: str) -> Step:
    architecture, _, x = _setting(a)
    network: Any = _network(a, name, architecture)
    network.eval()
    mask = nothing_masked(architecture.grid, a.batch, x.device)

    @torch.no_grad()
    def step() -> None:
        with arithmetic(x.device, resolve_precision("auto" if name == "suite" else "32-true", x.device)):
            network(x, mask.keep if name == "plain" else mask)

    return step


TASKS: dict[str, Callable[[argparse.Namespace, str], Step]] = {
    "training": _training,
    "inference": _inference,
    "embedding": _embedding,
}


def _setting(a: argparse.Namespace) -> tuple[Architecture, Masking, torch.Tensor]:
    """The official network (depth 6, decoder depth 3), its masks, and superpatches (B, 1, D, H, W)."""
    edge = (a.superpatch,) * 3
    architecture = Architecture(edge, (a.patch,) * 3, embed_dim=a.embed_dim, dropout=a.dropout, **OFFICIAL)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(a.batch, 1, *edge, generator=generator).to(a.device)
    return architecture, Masking("thinned", "random", a.ratio, a.ratio), x


def _network(a: argparse.Namespace, name: str, architecture: Architecture) -> torch.nn.Module:
    torch.manual_seed(0)
    if name == "plain":
        return PlainMAE(architecture).to(a.device)
    network = MaskedAutoencoder(architecture).to(a.device)
    network.recompute(a.recompute)
    if a.compile:
        network.compile()
    return network


def _alternate(a: argparse.Namespace, names: list[str]) -> dict[str, float]:
    """Median seconds of a step of each; the plain network and the suite's take turns."""
    steps = {name: TASKS[a.task](a, name) for name in names}
    taken: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(a.rounds + 1):
        for name, step in steps.items():
            _wait(a.device)
            start = time.perf_counter()
            step()
            _wait(a.device)
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) for name, times in taken.items()}


def _peak_memory(a: argparse.Namespace, name: str) -> float:
    """MiB that three steps need on top of the idle process."""
    torch.set_num_threads(a.threads)
    device = torch.device(a.device)
    before = 0.0 if device.type == "cuda" else peak_memory_mib(device)
    step = TASKS[a.task](a, name)
    for _ in range(3):
        step()
    _wait(a.device)
    return peak_memory_mib(device) - before


def _in_a_process(function: Callable[..., float], *arguments: Any) -> float:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def _wait(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def matmul_rate(dtype: torch.dtype, device: str) -> float:
    """FLOP per second of the best of 10 products of square matrices: what this machine can do."""
    n = 8192 if torch.device(device).type == "cuda" else 2048
    x = torch.rand(n, n, device=device).to(dtype)
    best = float("inf")
    for _ in range(10):
        _wait(device)
        start = time.perf_counter()
        x @ x
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


def report(a: argparse.Namespace, seconds: dict[str, float], memory: dict[str, float], rates: dict[str, float]) -> dict[str, Any]:
    """All figures of one measurement."""
    architecture, masking, _ = _setting(a)
    macs = by_formula(architecture, masking if a.task == "training" else None)
    flop = 2 * a.batch * {"training": 3 * macs.total, "inference": macs.total, "embedding": macs.encoder.total}[a.task]
    precision = resolve_precision("auto", torch.device(a.device))
    name = torch.cuda.get_device_name() if torch.device(a.device).type == "cuda" else platform.processor() or platform.machine()
    return {
        "task": a.task, "superpatch": a.superpatch, "patch": a.patch, "embed_dim": a.embed_dim, "batch": a.batch,
        "ratio": a.ratio if a.task == "training" else 0.0, "dropout": a.dropout, "compile": a.compile,
        "recompute": a.recompute, "device": name, "threads": a.threads, "torch": torch.__version__, "precision": precision,
        "matmul_gflops": {kind: rate / 1e9 for kind, rate in rates.items()},
        "networks": {
            who: {
                "superpatches_per_second": a.batch / s,
                "peak_memory_mib": memory[who],
                "gflops": flop / s / 1e9,
                "share_of_fp32_rate": flop / s / rates["fp32"],
                "share_of_bf16_rate": flop / s / rates["bf16"],
            }
            for who, s in seconds.items()
        },
    }  # fmt: skip


def print_table(found: dict[str, Any]) -> None:
    """The figures for a person."""
    setting = (
        f"{found['task']}: {found['superpatch']}³, patch {found['patch']}³, E {found['embed_dim']}, "
        f"mask ratio {found['ratio']} per axis, batch {found['batch']}"
    )
    print(f"\n{setting}\n{found['device']}, {found['threads']} threads, torch {found['torch']}")
    print("matmul: " + ", ".join(f"{kind} {rate:,.0f} GFLOP/s" for kind, rate in found["matmul_gflops"].items()))
    print("\n| network | superpatches/s | peak memory, MiB | GFLOP/s | share of fp32 rate | share of bf16 rate |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, f in found["networks"].items():
        kind = found["precision"] if name == "suite" else "32-true"
        print(
            f"| {name} ({kind}) | {f['superpatches_per_second']:.3g} | {f['peak_memory_mib']:,.0f} | {f['gflops']:,.0f} "
            f"| {f['share_of_fp32_rate']:.0%} | {f['share_of_bf16_rate']:.0%} |"
        )
    if "plain" in found["networks"]:
        suite, plain = found["networks"]["suite"], found["networks"]["plain"]
        speed = suite["superpatches_per_second"] / plain["superpatches_per_second"]
        print(f"\n{speed:.2f} times as fast, {suite['peak_memory_mib'] / plain['peak_memory_mib']:.2f} of the memory")


def _profile(a: argparse.Namespace) -> None:
    step = TASKS[a.task](a, "suite")
    step()
    with torch.profiler.profile() as profiler:
        step()
        _wait(a.device)
    order = "self_cuda_time_total" if torch.device(a.device).type == "cuda" else "self_cpu_time_total"
    print(profiler.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=50))


if __name__ == "__main__":
    main()
