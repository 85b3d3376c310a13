"""Stored pixels of a DICOM file. Compressed ones are decoded in a process of its own, which a damaged picture may kill.

python -m nemesis.data.formats.decoding     # one request per line, see `main`
"""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import sys
import tempfile
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemesis.data.formats.raster import AGAIN, by, refusal
from nemesis.errors import Fault, NemesisError

CONVERT = "dcm2niix may convert it; give the NIfTI file then."
SECONDS = 8  # of computing that one picture may take
PATIENCE = 120  # seconds that are waited for it, on a machine that does much else
MEMORY = 4 << 30  # bytes of address space for the decoder
MARGIN = 1 << 16  # bytes that compression may add to a small picture
NO_MORE_FRAGMENTS = b"\xfe\xff\xdd\xe0"  # the item that ends compressed pixels
ONE_SAMPLE: dict[str, Any] = {"samples_per_pixel": 1, "number_of_frames": 1, "photometric_interpretation": "MONOCHROME2",
              "pixel_keyword": "PixelData", "pixel_vr": "OW"}  # fmt: skip
RUN_LENGTHS = "1.2.840.10008.1.2.5"
IN_PYTHON = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2", RUN_LENGTHS)  # decoded without GDCM
FRAMES = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # JPEG's markers that give the size; F7 is JPEG-LS's
END = b"\xff\xd9"  # of every JPEG, JPEG-LS and JPEG 2000 stream


@dataclass(frozen=True)
class Picture:
    """The pixels of one file: at which byte they begin, how many they take if they are not compressed, and the header's words."""

    path: Path
    encoding: str
    start: int
    length: int
    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    pixel_representation: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.rows, self.columns


def stored_pixels(picture: Picture) -> NDArray[Any]:
    """Integers (rows, columns) as they are stored, before the rescaling, without the bits that mean nothing.

    Raises:
        NemesisError: truncated, corrupt or not decodable, or another size than the header says.
    """
    from pydicom.pixels.decoders.base import get_decoder

    path, wanted = picture.path, math.prod(picture.shape) * picture.bits_allocated // 8
    if picture.bits_allocated not in (8, 16, 32):
        raise refusal(path, f"its pixels are of {picture.bits_allocated} bits", CONVERT)
    try:
        decoder = get_decoder(picture.encoding)
    except NotImplementedError:
        raise refusal(path, "is compressed in a way that is not read", CONVERT) from None
    try:
        with path.open("rb") as file:
            file.seek(picture.start)
            data = file.read(2 * wanted + MARGIN if decoder.is_encapsulated else wanted)
        if decoder.is_encapsulated:
            _check_compressed(picture, data)
        elif picture.length not in (wanted, wanted + wanted % 2):
            raise refusal(path, f"holds {picture.length} bytes of pixels, where {wanted} belong", AGAIN)
        elif len(data) < wanted:
            raise refusal(path, f"is truncated ({len(data)} of {wanted} bytes of its pixels are there)", AGAIN)
        header = {key: value for key, value in asdict(picture).items() if key not in ("path", "encoding", "start", "length")}
        stored: NDArray[Any] = decoder.as_array(data, raw=True, index=0, **ONE_SAMPLE, **header)[0]
    except NemesisError:
        raise
    except Exception as error:  # pydicom and GDCM raise many kinds
        raise refusal(path, f"its pixels cannot be decoded ({type(error).__name__})", f"{AGAIN} {CONVERT}") from None
    if stored.shape != picture.shape or stored.dtype.kind not in "iu":
        raise refusal(path, "its pixels are not what its header says", AGAIN)
    return stored


def picture_size(data: bytes) -> tuple[int, int] | None:
    """Rows and columns of a JPEG, JPEG-LS or JPEG 2000 stream, after its own header; None of anything else."""
    if data[:4] == b"\xff\x4f\xff\x51" and len(data) >= 24:
        right, lower, left, upper = struct.unpack(">4I", data[8:24])
        return lower - upper, right - left
    at = 2 if data[:2] == b"\xff\xd8" else len(data)
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in FRAMES:
            rows, columns = struct.unpack(">2H", data[at + 5 : at + 9])
            return rows, columns
        at += 1 if marker == 0xFF else 2 + length  # fill bytes may stand before a marker
    return None


def _check_compressed(picture: Picture, data: bytes) -> None:
    """Refuse what a decoder would make too much room for, or would fill up where it ends early."""
    from pydicom.encaps import get_frame

    if NO_MORE_FRAGMENTS not in data:
        what = "is truncated or too long (its compressed picture does not end within twice the bytes of its pixels)"
        raise refusal(picture.path, what, AGAIN)
    if picture.encoding == RUN_LENGTHS:
        return
    frame = get_frame(data, 0, number_of_frames=1)
    drawn = picture_size(frame)
    if drawn != picture.shape:
        said = f"is of {by(drawn)} pixels, not {by(picture.shape)}" if drawn else "is none"
        raise refusal(picture.path, f"its compressed picture {said}", AGAIN)
    if not frame.rstrip(b"\0").endswith(END):
        raise refusal(picture.path, "is truncated (its compressed picture ends early)", AGAIN)


class Decoder:
    """:func:`stored_pixels`, of compressed pictures in a process of its own, which starts with the first of them."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._said: Any = None  # what the process wrote on standard error

    def __call__(self, picture: Picture) -> NDArray[Any]:
        """See :func:`stored_pixels`."""
        if picture.encoding in IN_PYTHON:
            return stored_pixels(picture)
        if self._process is None:
            self._said = tempfile.TemporaryFile()  # noqa: SIM115
            command = [sys.executable, "-P", "-W", "ignore", "-m", "nemesis.data.formats.decoding"]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said)
        asked = asdict(picture) | {"path": os.fsencode(picture.path).hex()}
        answer, data = self._answer(self._process, json.dumps(asked).encode() + b"\n")
        if not answer:
            self.close()
            what = "its compressed picture stops the decoder (it crashes, or takes too long)"
            raise refusal(picture.path, what, AGAIN, passing=True)
        if "fault" in answer:
            raise NemesisError(Fault(*answer["fault"]))
        if b"orrupt" in os.pread(self._said.fileno(), MARGIN, 0):  # libjpeg goes on after it has said so
            self.close()
            raise refusal(picture.path, "its compressed picture is corrupt", AGAIN)
        return np.frombuffer(data, answer["dtype"]).reshape(picture.shape)

    @staticmethod
    def _answer(process: subprocess.Popen[bytes], asked: bytes) -> tuple[dict[str, Any], bytes]:
        """Header and bytes; an empty header where the process died or had to be killed."""
        assert process.stdin is not None and process.stdout is not None
        late = threading.Timer(PATIENCE, process.kill)
        late.start()
        try:
            process.stdin.write(asked)
            process.stdin.flush()
            answer: dict[str, Any] = json.loads(process.stdout.readline() or "{}")
            data = process.stdout.read(answer.get("bytes", 0))
            return (answer, data) if len(data) == answer.get("bytes", 0) else ({}, b"")
        except OSError:  # its end of the pipe is closed
            return {}, b""
        finally:
            late.cancel()

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._said.close()
            self._process = None


def limit() -> None:
    """Let this process compute for ``SECONDS`` more, in ``MEMORY``."""
    try:
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        for kind, most in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + SECONDS)):
            resource.setrlimit(kind, (most, resource.getrlimit(kind)[1]))
    except (ImportError, ValueError, OSError):  # not on this system, or less is allowed anyway
        pass


def main() -> None:
    """Answer lines of standard input, each a :class:`Picture` in JSON (its path in hex): with a line {"bytes", "dtype"} and the
    bytes of the pixels, or with {"fault"}."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a decoder prints is no answer
    for line in sys.stdin:
        limit()
        asked, data = json.loads(line), b""
        path = Path(os.fsdecode(bytes.fromhex(asked.pop("path"))))
        try:
            stored = np.ascontiguousarray(stored_pixels(Picture(path, **asked)))
            answer: dict[str, Any]
            data, answer = stored.tobytes(), {"bytes": stored.nbytes, "dtype": stored.dtype.str}
        except NemesisError as error:
            fault = error.faults[0]
            answer = {"fault": [fault.where, fault.what, fault.remedy]}
        answers.write(json.dumps(answer).encode() + b"\n" + data)
        answers.flush()


if __name__ == "__main__":
    main()
