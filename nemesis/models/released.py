"""Checkpoints of the released NEMESIS code: read with care, and written so that the released code reads them."""

from __future__ import annotations

import argparse
import io
import logging
import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nemesis.errors import Fault, NemesisError
from nemesis.files import write_bytes
from nemesis.models.architecture import OFFICIAL, Architecture, Size
from nemesis.models.mae import MAEgic3DMAE

logger = logging.getLogger(__name__)

HEADS, EDGE = 8, 128  # of every released checkpoint; the tensors do not say them

# what training scripts put beside the weights, and that does nothing when it is read: NumPy's scalars and argparse's Namespace
_HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *{type(np.dtype(name)) for name in ("float16", "float32", "float64", "int32", "int64", "bool")},
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
]


def load_released(
    path: Path,
    superpatch_size: int | Size | None = None,
    patch_size: int | Size | None = None,
    num_heads: int | None = None,
    decoder_num_heads: int | None = None,
) -> MAEgic3DMAE:
    """The network of a released checkpoint, in evaluation mode.

    Sizes are read off the tensors. Heads, superpatch and the patch's shape in the plane are not in them: they are taken from
    the arguments, else from the file's ``config``, else from the released defaults, which is then said in the log.

    Raises:
        NemesisError: no such file, truncated, not a NEMESIS checkpoint, carrying code, or sizes that do not fit.
    """
    content = _read(path)
    state = content.get("model_state_dict", content)
    said = _said(content.get("config"))
    asked = {
        "superpatch_size": superpatch_size, "patch_size": patch_size, "num_heads": num_heads,
        "decoder_num_heads": decoder_num_heads,
    }  # fmt: skip
    given = said | {name: value for name, value in asked.items() if value is not None}
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise _refusal(path, "is no NEMESIS checkpoint: it holds no `model_state_dict` of tensors")
    state = {name.removeprefix("module."): value for name, value in state.items()}
    try:
        architecture = _architecture(state, given)
    except KeyError as error:
        raise _refusal(path, f"is no NEMESIS checkpoint: it has no tensor {error}") from None
    except (ValueError, TypeError) as error:
        what = f"does not fit its sizes: {error}"
        remedy = "Pass superpatch_size, patch_size, num_heads and decoder_num_heads as it was trained with."
        raise NemesisError(Fault(str(path), what, remedy)) from None
    model = MAEgic3DMAE.of(architecture)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise _refusal(path, f"holds another network than its name says: {lines[min(1, len(lines) - 1)]}") from None
    assumed = {
        "num_heads": architecture.heads, "decoder_num_heads": architecture.decoder_heads,
        "superpatch_size": architecture.superpatch, "patch_size": architecture.patch,
    }  # fmt: skip
    words = ", ".join(f"{name} {value}" for name, value in assumed.items() if name not in given)
    if words:
        logger.warning("%s: the file does not say %s: the released values are assumed", path, words)
    return model.eval()


def export_released(
    model: MAEgic3DMAE, path: Path, epoch: int = 0, val_loss: float = math.nan, exp_name: str = "nemesis"
) -> None:
    """Write a checkpoint in the released layout, which the released code and :func:`load_released` read.

    Raises:
        NemesisError: the network is not of the official architecture, so the released code has no place for it.
    """
    for name, value in OFFICIAL.items():
        has = getattr(model.architecture, name)
        if name not in ("gate_start", "decoder_dim") and has != value:
            what = f"has {name} {has}, the released code knows {value} only"
            raise NemesisError(Fault(str(path), what, "Train with `preset: official` to export it."))
    content = {
        "epoch": epoch,
        "model_state_dict": {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()},
        "optimizer_state_dict": {},
        "scheduler_state_dict": {},
        "val_loss": val_loss,
        "exp_name": exp_name,
        "config": {
            "num_heads": model.architecture.heads,
            "decoder_num_heads": model.architecture.decoder_heads,
            "superpatch_size": list(model.architecture.superpatch),
            "patch_size": list(model.architecture.patch),
        },
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())


def _read(path: Path) -> dict[str, Any]:
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise _refusal(path, f"cannot be read ({error.strerror or error})") from None
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error) or "global" in str(error):
            raise _refusal(path, "carries code, which was not run: a checkpoint holds tensors and numbers only") from None
        raise _refusal(path, "is no PyTorch checkpoint, or is damaged") from None
    except Exception:  # zip, pickle and tensor readers each raise their own kinds
        raise _refusal(path, "is truncated, damaged, or no PyTorch checkpoint") from None
    if not isinstance(content, dict):
        raise _refusal(path, f"is no NEMESIS checkpoint: it holds a {type(content).__name__}")
    return content


def _said(config: Any) -> dict[str, Any]:
    """What a checkpoint's ``config`` says of the sizes that its tensors do not show."""
    config = vars(config) if isinstance(config, argparse.Namespace) else config
    if not isinstance(config, Mapping):
        return {}
    inner = config.get("model")
    merged = {**config, **inner} if isinstance(inner, Mapping) else config
    names = ("superpatch_size", "patch_size", "num_heads", "decoder_num_heads")
    return {name: merged[name] for name in names if merged.get(name) is not None}


def _architecture(state: Mapping[str, Tensor], given: Mapping[str, Any]) -> Architecture:
    embed_dim = state["encoder.norm.weight"].shape[0]
    with_tokens = "encoder.adaptive_agg.mt" in state
    patch = _triple(given["patch_size"]) if "patch_size" in given else None
    if with_tokens:
        tokens = state["encoder.adaptive_agg.mt"].shape[1]
        p_d = state["encoder.adaptive_agg.pos_embed"].shape[1]
        in_plane = state["encoder.adaptive_agg.embed.weight"].shape[1]
        patch = patch or (p_d, *(_root(in_plane, 2),) * 2)
        if patch[0] != p_d or patch[1] * patch[2] != in_plane:
            raise ValueError(f"its patches have {p_d} slices of {in_plane} voxels, not {'×'.join(map(str, patch))}")
    else:
        tokens, voxels = 0, state["encoder.patch_embed.weight"].shape[1]
        patch = patch or (_root(voxels, 3),) * 3
        if math.prod(patch) != voxels:
            raise ValueError(f"its patches have {voxels} voxels, not {'×'.join(map(str, patch))}")
    return Architecture(
        superpatch=_triple(given.get("superpatch_size", EDGE)),
        patch=patch,
        embed_dim=embed_dim,
        depth=_count(state, "encoder.blocks."),
        heads=int(given.get("num_heads", HEADS)),
        tokens=tokens,
        decoder_depth=_count(state, "decoder.blocks."),
        decoder_heads=int(given.get("decoder_num_heads", HEADS)),
        **{
            **OFFICIAL,
            "ffn_dim": state["encoder.blocks.0.ffn.0.weight"].shape[0],
            "decoder_dim": state["decoder.mask_token"].shape[-1],
        },
    )


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})


def _root(n: int, power: int) -> int:
    root = round(n ** (1 / power))
    if root**power != n:
        raise ValueError(f"{n} voxels are no {'square' if power == 2 else 'cube'}, so the patch's shape is unknown")
    return root


def _triple(size: int | Size) -> Size:
    return (size, size, size) if isinstance(size, int) else (int(size[0]), int(size[1]), int(size[2]))


def _refusal(path: Path, what: str) -> NemesisError:
    return NemesisError(Fault(str(path), what, "Give a released NEMESIS checkpoint (.pt), or a folder that nemesis wrote."))
