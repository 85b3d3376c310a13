"""Benchmark suite for self-supervised pretraining on 3D CT."""

from typing import Any

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    if name == "load":  # torch is imported when it is asked for: planning does without
        from nemesis.pretrained import load

        return load
    raise AttributeError(f"module 'nemesis' has no attribute '{name}'")
