"""Work for processes of its own, of which each may die without taking the others' work along."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def each(function: Callable[[T], R], tasks: Iterable[T], workers: int) -> Iterator[tuple[T, R | None]]:
    """Every task with what ``function`` says of it, as they get ready; None where it killed its process, though tried alone.

    Where a process dies (a decoder that crashes, the system that runs out of memory), the tasks that were being worked on are
    tried again, each alone; then all go on together.

    Args:
        function: can be pickled, as its argument and its result.
        tasks: what to do.
        workers: processes at the same time; 0 does all in this one.

    Raises:
        Exception: whatever ``function`` raises.
    """
    if workers == 0:
        yield from ((task, function(task)) for task in tasks)
        return
    waiting = deque(tasks)
    while waiting:
        for suspect in (yield from _until_one_dies(function, waiting, workers)):
            if (yield from _until_one_dies(function, deque([suspect]), 1)):
                yield suspect, None


def _until_one_dies(function: Callable[[T], R], waiting: deque[T], workers: int) -> Generator[tuple[T, R], None, list[T]]:
    """Take tasks and yield their results; returns the tasks that were being worked on when a process died."""
    # Spawned, not forked: the caller may hold threads (BLAS, Blosc2) that a fork would leave locked.
    context = multiprocessing.get_context("spawn")
    running: dict[Future[R], T] = {}
    with ProcessPoolExecutor(max(1, min(workers, len(waiting))), context, initializer=_die_with_parent) as pool:
        try:
            while waiting or running:
                while waiting and len(running) < workers:  # no more than are worked on: only these are suspect
                    running[pool.submit(function, waiting[0])] = waiting[0]
                    waiting.popleft()
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    result = future.result()
                    yield running.pop(future), result
        except BrokenProcessPool:
            pass
        finally:
            pool.shutdown(cancel_futures=True)
    suspects = []
    for future, task in running.items():
        try:
            result = future.result()  # it may have been ready when another died
        except BrokenProcessPool:
            suspects.append(task)
        else:
            yield task, result
    return suspects


def _die_with_parent() -> None:
    """Without this, workers whose parent was killed with -9 would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
