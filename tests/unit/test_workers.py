"""Processes that die."""

import os
import signal

import pytest

from nemesis.workers import each


def square(n):
    return n * n


def square_or_die(n):
    if n == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return n * n


def die_once(mark):
    """Dies unless it has died before, as a scan that only fits into memory alone."""
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return mark.name


def fail(n):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_every_task_once_whatever_the_number_of_processes(workers):
    assert sorted(each(square, range(7), workers)) == [(n, n * n) for n in range(7)]


def test_a_task_that_kills_its_process_takes_no_other_along():
    assert sorted(each(square_or_die, range(7), 2), key=lambda pair: pair[0]) == [
        (n, None if n == 3 else n * n) for n in range(7)
    ]


def test_what_was_being_done_when_a_process_died_is_tried_again_alone(tmp_path):
    assert list(each(die_once, [tmp_path / "a"], 2)) == [(tmp_path / "a", "a")]


def test_what_is_raised_is_raised():
    with pytest.raises(OSError, match="No space"):
        list(each(fail, range(3), 2))
