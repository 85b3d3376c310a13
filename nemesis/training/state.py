"""The resumable state of a training: written whole, outside the workflow's outputs, so that an interruption costs minutes."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from nemesis.errors import Fault, NemesisError
from nemesis.files import write_bytes


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write tensors, numbers and text atomically."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_bytes(path, buffer.getvalue())


def load_state(path: Path, device: torch.device) -> dict[str, Any] | None:
    """What :func:`save_state` wrote, or None where nothing was saved yet, or another process has finished the training.

    Raises:
        NemesisError: the file is damaged.
    """
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:  # not asked for beforehand: it may vanish after the answer
        return None
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise NemesisError(
            Fault(str(path), f"is damaged ({error})", "Delete it: the training starts again from its first step")
        ) from None
