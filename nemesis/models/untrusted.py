"""Files of torch.save from elsewhere, read with care: what they hold is data or refused, and nothing in them is run."""

from __future__ import annotations

import argparse
import io
import pickletools
import re
import warnings
import zipfile
from pathlib import Path, PosixPath
from typing import Any

import numpy as np
import torch

from nemesis.errors import Fault, NemesisError


class _Inert:
    """Stands for an optimiser that was saved as an object (VoCo's script does): it forgets its state, and nobody asks for it."""

    def __setstate__(self, state: Any) -> None:
        pass


# what training scripts put beside the weights, and that does nothing when it is read: NumPy's scalars, argparse's Namespace, ...
_HARMLESS: list[Any] = [
    argparse.Namespace,
    (lambda *_: {}, "collections.defaultdict"),  # read as the dictionary that it is; its first argument is one of the next
    dict,
    list,
    *((_Inert, f"torch.optim.{name}") for name in ("adam.Adam", "adamw.AdamW", "sgd.SGD")),
    PosixPath,
    np.dtype,
    np.ndarray,
    *{type(np.dtype(kind)) for kind in "?bBhHiIlLefdU"},
    *(
        (maker, f"numpy.{core}.multiarray.{name}")
        for maker, name in ((np.float64(0).__reduce__()[0], "scalar"), (np.zeros(1).__reduce__()[0], "_reconstruct"))
        for core in ("core", "_core")
    ),
]
# what a pickle of tensors and numbers may name when it is read
_DATA = re.compile(
    r"torch\.(_utils\._rebuild\w+|_tensor\.\w+|storage\.\w+|serialization\._get_layout|nn\.parameter\.Parameter|\w+Storage"
    r"|Size|Tensor|device|dtype|bool|(bfloat|float|complex|q?u?int)\d+\w*|optim\.(adam\.Adam|adamw\.AdamW|sgd\.SGD))"
    r"|(builtins|__builtin__)\.(dict|list|set)|collections\.(OrderedDict|Counter|defaultdict)|argparse\.Namespace|pathlib\.PosixPath"
    r"|numpy\.(dtype|ndarray|dtypes\.\w+|_?core\.multiarray\.(scalar|_reconstruct))|_codecs\.encode"
)


def read_tensors(path: Path, remedy: str) -> Any:
    """What a file of ``torch.save`` holds: containers of tensors, numbers and text, tensors on the CPU.

    Raises:
        NemesisError: no such file, damaged, truncated, no file of ``torch.save``, or carrying code; with this remedy.
    """

    def refusal(what: str) -> NemesisError:
        return NemesisError(Fault(str(path), what, remedy))

    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if archive.testzip():
                    raise refusal("is damaged (a checksum does not match)")
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(_HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except NemesisError:
        raise
    except OSError as error:
        raise refusal(f"cannot be read ({error.strerror or error})") from None
    except Exception:  # zip, pickle and tensor readers each raise their own kinds
        name = _foreign(path)
        if name:
            raise refusal(f"carries code ({name}), which was not run: a checkpoint holds tensors and numbers") from None
        raise refusal("is truncated, damaged, or no PyTorch checkpoint") from None


def _foreign(path: Path) -> str | None:
    """The first name in a pickle that stands for no tensor or number; read from its opcodes, nothing of it is run."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                streams = [archive.read(name) for name in archive.namelist() if name.endswith(".pkl")]
        else:
            streams = [path.read_bytes()]
        for stream in streams:
            rest = io.BytesIO(stream)
            while rest.tell() < len(stream):  # the old layout is several pickles, one after another
                words, memo = [""], []  # a name's two words are pushed right before it, as they are or from the memo
                for code, argument, _ in pickletools.genops(rest):
                    if code.name in ("GLOBAL", "INST", "STACK_GLOBAL"):
                        name = ".".join(words[-2:]) if code.name == "STACK_GLOBAL" else str(argument).replace(" ", ".")
                        if not _DATA.fullmatch(name):
                            return name
                    elif code.name == "MEMOIZE":
                        memo.append(words[-1])
                    elif code.name in ("BINGET", "LONG_BINGET") and memo:
                        words.append(memo[int(str(argument))])
                    elif isinstance(argument, str):
                        words.append(argument)
    except Exception:  # it is no pickle, or a broken one
        return None
    return None
