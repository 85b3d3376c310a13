"""Lines that tell whoever waits, or reads the log, how far a phase has come."""

from __future__ import annotations


def progress(phase: str, done: int, total: int) -> None:
    """Print ``phase done/total`` whenever another tenth is reached; call after each part, in order."""
    if done * 10 // total > (done - 1) * 10 // total:
        print(f"{phase} {done}/{total}", flush=True)
