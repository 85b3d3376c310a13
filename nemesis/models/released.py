"""Checkpoints of the released NEMESIS code: read with care, and written so that the released code reads them."""

from __future__ import annotations

import argparse
import io
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor

from nemesis.config import Preparation
from nemesis.errors import Fault, NemesisError
from nemesis.files import write_bytes
from nemesis.models.architecture import OFFICIAL, Architecture, Size, triple
from nemesis.models.mae import MAEgic3DMAE
from nemesis.models.masking import Masking
from nemesis.models.untrusted import read_tensors

logger = logging.getLogger(__name__)

REMEDY = "Give a released NEMESIS checkpoint (.pt), or a folder that nemesis wrote."
HEADS, EDGE, DROPOUT = 8, 128, 0.1  # of every released checkpoint; the tensors do not say them

_NAMED = re.compile(r"MAE_\d+_(0?\.\d+)")  # as the released files are: the width and the mask ratio on either axis


class Told(TypedDict, total=False):
    """What the tensors of a released checkpoint do not say, by the released names; sizes in voxels, one number or (D, H, W)."""

    superpatch_size: int | Size | None
    patch_size: int | Size | None
    in_channels: int | None
    num_heads: int | None
    decoder_num_heads: int | None
    spatial_mask_ratio: float | None
    depth_mask_ratio: float | None
    dropout: float | None


def load_released(path: Path, **told: Unpack[Told]) -> MAEgic3DMAE:
    """The network of a released checkpoint, in evaluation mode.

    Sizes are read off the tensors. What they do not say (:class:`Told`) is taken from the arguments, else from the file's
    ``config``, else (the mask ratio) from its name, else from the released defaults, which is then said in the log.

    Raises:
        NemesisError: no such file, truncated, not a NEMESIS checkpoint, carrying code, or sizes that do not fit.
    """
    content = _read(path)
    state = content.get("model_state_dict", content)
    said = _said(content.get("config"))
    given = _in_name(path) | said | {name: value for name, value in told.items() if value is not None}
    if not isinstance(state, Mapping) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise _refusal(path, "is no NEMESIS checkpoint: it holds no `model_state_dict` of tensors")
    # prefixes of DataParallel and of torch.compile
    state = {name.removeprefix("module.").removeprefix("_orig_mod."): value for name, value in state.items()}
    try:
        architecture = _architecture(state, given)
        ratios = [float(given.get(name, 0.5)) for name in ("spatial_mask_ratio", "depth_mask_ratio")]
        model = MAEgic3DMAE.of(architecture, Masking("thinned", "random", *ratios))
        if "preparation" in given:  # of a network of ours
            model.preparation = Preparation.model_validate(given["preparation"])
    except KeyError as error:
        raise _refusal(path, f"is no NEMESIS checkpoint: it has no tensor {error}") from None
    except IndexError:
        raise _refusal(path, "is no NEMESIS checkpoint: its tensors have other numbers of axes") from None
    except (ValueError, TypeError) as error:
        what = f"does not fit its sizes: {' '.join(str(error).split())}"
        remedy = "Pass superpatch_size, patch_size, num_heads and decoder_num_heads as it was trained with."
        raise NemesisError(Fault(str(path), what, remedy)) from None
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise _refusal(path, f"holds another network than its name says: {lines[min(1, len(lines) - 1)]}") from None
    config = _config(model)
    words = ", ".join(f"{name} {config[name]}" for name in Told.__annotations__ if name not in given)
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
    a = model.architecture
    needed = {**OFFICIAL, "streams": "both", "decoder_dim": a.embed_dim, "gate_start": a.gate_start}
    for name, value in needed.items():
        has = a.decoder_width if name == "decoder_dim" else getattr(a, name)
        if has != value:
            what = f"is of a network with {name} {has}; the released code knows {value} only"
            raise NemesisError(Fault(str(path), what, "Train with `preset: official` to export it, or export to a folder."))
    if (strategy := model.encoder.masking.plane) != "thinned":
        what = f"is of a network with `plane_masking: {strategy}`; the released code knows thinned only"
        raise NemesisError(Fault(str(path), what, "Export to a folder."))
    content = {
        "epoch": epoch,
        "model_state_dict": {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()},
        "optimizer_state_dict": {},
        "scheduler_state_dict": {},
        "val_loss": val_loss,
        "exp_name": exp_name,
        "config": _config(model),
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getvalue())


def _config(model: MAEgic3DMAE) -> dict[str, Any]:
    """What the tensors do not show, by the released names, and how scans become the network's input."""
    a, masking = model.architecture, model.encoder.masking
    return {
        "superpatch_size": list(a.superpatch),
        "patch_size": list(a.patch),
        "in_channels": a.channels,
        "num_heads": a.heads,
        "decoder_num_heads": a.decoder_heads,
        "spatial_mask_ratio": masking.plane_ratio,
        "depth_mask_ratio": masking.axis_ratio,
        "dropout": a.dropout,
        "preparation": model.preparation.model_dump(mode="json"),
    }


def _in_name(path: Path) -> dict[str, Any]:
    named = _NAMED.match(path.name)
    return dict.fromkeys(("spatial_mask_ratio", "depth_mask_ratio"), float(named.group(1))) if named else {}


def _read(path: Path) -> dict[str, Any]:
    if path.suffix == ".safetensors":  # torch.load would take it, and then the sizes of its card would be guessed
        raise _refusal(path, "is a file of safetensors without the card.json or run.json that belongs beside it")
    content = read_tensors(path, REMEDY)
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
    return {name: merged[name] for name in (*Told.__annotations__, "preparation") if merged.get(name) is not None}


def _architecture(state: Mapping[str, Tensor], given: Mapping[str, Any]) -> Architecture:
    embed_dim = state["encoder.norm.weight"].shape[0]
    with_tokens = "encoder.adaptive_agg.mt" in state
    patch = triple(given["patch_size"]) if "patch_size" in given else None
    channels = int(given.get("in_channels", 1))
    if with_tokens:
        tokens = state["encoder.adaptive_agg.mt"].shape[1]
        p_d = state["encoder.adaptive_agg.pos_embed"].shape[1]
        in_plane = _share(state["encoder.adaptive_agg.embed.weight"].shape[1], channels)
        patch = patch or (p_d, *(_root(in_plane, 2),) * 2)
        if patch[0] != p_d or patch[1] * patch[2] != in_plane:
            raise ValueError(f"its patches have {p_d} slices of {in_plane} voxels, not {'×'.join(map(str, patch))}")
    else:
        tokens, voxels = 0, _share(state["encoder.patch_embed.weight"].shape[1], channels)
        patch = patch or (_root(voxels, 3),) * 3
        if math.prod(patch) != voxels:
            raise ValueError(f"its patches have {voxels} voxels, not {'×'.join(map(str, patch))}")
    return Architecture(
        superpatch=triple(given.get("superpatch_size", EDGE)),
        patch=patch,
        channels=channels,
        embed_dim=embed_dim,
        depth=_count(state, "encoder.blocks."),
        heads=int(given.get("num_heads", HEADS)),
        tokens=tokens,
        dropout=float(given.get("dropout", DROPOUT)),
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


def _share(numbers: int, channels: int) -> int:
    if channels < 1 or numbers % channels:
        raise ValueError(f"in_channels {channels} does not divide the {numbers} numbers of its patches")
    return numbers // channels


def _refusal(path: Path, what: str) -> NemesisError:
    return NemesisError(Fault(str(path), what, REMEDY))
