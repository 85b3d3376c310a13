"""The one exception people see: what is wrong, in which file, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: where (a file, a key, a case), what, and the remedy.

    ``passing``: it may be gone at the next try though the file stays as it is (no permission, no memory, a share that is away).
    """

    where: str
    what: str
    remedy: str
    passing: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "where", printable(self.where))
        object.__setattr__(self, "what", printable(self.what))

    def __str__(self) -> str:
        return f"{self.where}: {self.what}. {self.remedy}"


def printable(text: str) -> str:
    """The text with control characters, odd spaces and undecodable bytes written out: a file's name may hold any, and steer a
    terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def did_you_mean(name: str, known: Iterable[str], otherwise: str, prefix: str = "") -> str:
    """The remedy for a name that is not ``known``: the one closest to it (after ``prefix``), or what ``otherwise`` says."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"Did you mean '{prefix}{close[0]}'?" if close else otherwise


class NemesisError(Exception):
    """Bad input, with every fault that was found; raised before work starts and printed without a traceback."""

    def __init__(self, faults: Fault | Iterable[Fault]) -> None:
        self.faults = [faults] if isinstance(faults, Fault) else list(faults)
        super().__init__(str(self))

    def __str__(self) -> str:
        if len(self.faults) == 1:
            return str(self.faults[0])
        return f"{len(self.faults)} faults:\n" + "\n".join(f"  - {fault}" for fault in self.faults)


class TrainingError(NemesisError):
    """Settings with which a training cannot come to its end, wherever and whenever it is tried."""
