"""Listing a tree of DICOM files: every CT volume is a case of its patient, everything else is passed over by kind.

Only headers are read, and only of files that changed. A patient is called by a salted hash of the PatientID, a case by that
and a short hash of the SeriesInstanceUID. Where UIDs were emptied, folders stand for series and studies for patients.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from nemesis.data import VERSION
from nemesis.data.formats.dicom import CAPTURE, PICTURES, read_header
from nemesis.data.lidc import NODULE, series_of
from nemesis.data.listings.listing import LOOK, Listing, digest_of
from nemesis.data.readers import SMALLEST
from nemesis.data.seen import fingerprint
from nemesis.datasets import DicomTree
from nemesis.errors import Fault, NemesisError

CT_IMAGES = "1.2.840.10008.5.1.4.1.1.2"  # CT, and with a dot more: enhanced CT
HARMLESS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
ENDING, MODALITY = re.compile(r"\.[A-Za-z]{1,8}"), re.compile(r"[A-Z0-9 _]{1,16}")
FEW = 1000  # files of which a tree of DICOM holds at least one
AGAIN = "Copy or download it again, or take it out of the folder."


@dataclass
class _Series:
    """The CT slices of one SeriesInstanceUID, or of a folder without one; several patients or folders are faults."""

    uid: str = ""
    patients: set[str] = field(default_factory=set)
    studies: set[str] = field(default_factory=set)
    folders: set[str] = field(default_factory=set)
    marks: list[list[str]] = field(default_factory=list)
    frames: int = 0


def kept_salt(dataset: DicomTree, keep: Path | None) -> str:
    """The salt of patients' names: the section's, or a random one that is made once and kept in ``keep``, for its owner only.

    Raises:
        NemesisError: the file cannot be read or made.
    """
    if dataset.public_identifiers or dataset.salt is not None:
        return dataset.salt or ""
    new = secrets.token_hex(16)
    if keep is None:
        return new
    path = keep / "salt"
    try:
        if not path.exists():
            keep.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=keep)  # with mode 0600
            try:
                with os.fdopen(handle, "w", encoding="ascii") as file:
                    file.write(new)
                os.link(name, path)  # whole, and only if nobody else was faster
            except FileExistsError:
                pass
            finally:
                os.unlink(name)
        return path.read_text(encoding="ascii")
    except (OSError, ValueError) as error:
        what = f"the salt of patients' names cannot be kept ({getattr(error, 'strerror', None) or error})"
        raise NemesisError(Fault(str(path), what, f"Set `salt` of datasets.{dataset.name}.")) from None


def list_dicom(dataset: DicomTree, listing: Listing, salt: str) -> None:
    """Note every CT volume of the tree.

    Args:
        salt: of the patients' hashes.
    """
    found, xml = _look_through(dataset, listing, salt)
    drawn = _xml_of_series(listing, xml, found) if dataset.annotations == "lidc" else {}
    for key, series in sorted(found.items(), key=lambda item: (min(item[1].folders), item[0])):
        uid, folder = series.uid, min(series.folders)
        if len(series.patients) > 1:
            what = "one of its series carries several PatientIDs, so nobody can tell whose it is"
            listing.faults.append(Fault(str(listing.root / folder), what, "Export the series again, or take it out."))
            continue
        if series.frames < SMALLEST:
            listing.passed_over[f"CT series of fewer than {SMALLEST} slices"] += 1
            continue
        patient = min(series.patients)
        if not patient:  # a patient with two such studies would be two: said aloud, for pools are split by patient
            patient = _hashed(salt, min(series.studies) or key)
            listing.notes["CT series without PatientID: each study, or folder, counts as a patient"] += 1
        if not uid:
            listing.notes["CT series without SeriesInstanceUID: what lies in one folder counts as a series"] += 1
        case = f"{patient}-{hashlib.sha256(uid.encode()).hexdigest()[:8] if uid else _hashed(salt, key)[:8]}"
        if len(series.folders) > 1:
            what = f"lies in several folders ({', '.join(sorted(series.folders)[:3])}...)"
            listing.fault(case, listing.root / folder, what, "Put the slices of the series into one folder, once.")
        elif uid in drawn:
            of_files = uid, [digest_of(sorted(series.marks))]
            listing.add(case, folder, [drawn[uid]], "exhaustive", (NODULE,), patient=patient, series=of_files)
        else:
            listing.add(case, folder, patient=patient, series=(uid, [digest_of(sorted(series.marks))]))
            if dataset.annotations == "lidc":
                listing.notes["CT series without an XML: taken as not annotated"] += 1
    if not listing.cases and not listing.faults and not listing.excluded:
        what = f"holds no CT volume in DICOM ({listing.said() or 'no file at all'})"
        listing.faults.append(Fault(str(listing.root), what, "Correct `root`, or name another reader."))


def _look_through(dataset: DicomTree, listing: Listing, salt: str) -> tuple[dict[str, _Series], list[str]]:
    """CT slices by SeriesInstanceUID, and the XML files; what is neither is counted."""
    found: dict[str, _Series] = defaultdict(_Series)
    others: dict[str, set[str]] = defaultdict(set)
    xml: list[str] = []
    faulty: dict[tuple[str, str, str], list[str]] = defaultdict(list)  # (folder, what, remedy) → files: hundreds may be alike
    public = dataset.public_identifiers
    look = f"dicom {'public' if public else hashlib.sha256(salt.encode()).hexdigest()[:16]} {LOOK}"
    for folder, name in _files(listing):
        file = f"{folder}/{name}" if folder else name
        path = listing.root / file
        try:
            listing.check(file)
            told = listing.seen.of(path, look, lambda path: _told(path, None if public else salt))
        except NemesisError as error:
            for fault in error.faults:
                faulty[folder, fault.what, fault.remedy].append(fault.where)
            continue
        except OSError as error:
            faulty[folder, f"cannot be read ({error.strerror})", "Check the file and its permissions."].append(str(path))
            continue
        if told["kind"] == "CT":
            if public and told["patient"] and not HARMLESS.fullmatch(told["patient"]):
                what = "its PatientID holds other characters than letters, digits, '.', '_' and '-'"
                faulty[folder, what, "Set `public_identifiers: false`."].append(str(path))
            series = found[told["series"] or f"folder {folder}"]
            series.uid = told["series"]
            series.patients.add(told["patient"])
            series.studies.add(told["study"])
            series.folders.add(folder or ".")
            series.marks.append([name, told["fingerprint"]])
            series.frames += told["frames"]
        elif "series" in told:
            others[told["kind"]].add(told["series"] or f"folder {folder}")
        elif name.lower().endswith(".xml") and dataset.annotations:
            xml.append(file)
        else:
            listing.passed_over[told["kind"]] += 1
    for (_, what, remedy), files in faulty.items():
        more = f" (and {len(files) - 1} more of its folder likewise)" if len(files) > 1 else ""
        listing.faults.append(Fault(files[0], what + more, remedy))
    for kind, series_uids in others.items():
        listing.passed_over[f"{kind} series"] += len(series_uids)
    return found, xml


def _files(listing: Listing) -> Iterator[tuple[str, str]]:
    """(folder relative to the root, "" for the root itself; name) of every file that is not hidden, in order."""

    def failed(error: OSError) -> None:
        what = f"cannot be read ({error.strerror})"
        listing.faults.append(Fault(str(error.filename), what, "Check the folder and its permissions."))

    root = str(listing.root)
    for folder, folders, names in os.walk(root, onerror=failed):
        linked = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        listing.passed_over["folders that are links"] += len(linked)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in linked)
        relative = os.path.relpath(folder, root)
        for name in sorted(names):
            if not name.startswith("."):
                yield "" if relative == "." else relative, name


def is_dicom_tree(root: Path) -> bool:
    """At least one of the first files is DICOM."""
    listing = Listing("", root)
    for folder, name in islice(_files(listing), FEW):
        file = f"{folder}/{name}" if folder else name
        try:
            listing.check(file)
            with (root / file).open("rb") as opened:
                if opened.read(132)[128:] == b"DICM":
                    return True
        except (NemesisError, OSError):
            continue  # the listing names it
    return False


def _told(path: Path, salt: str | None) -> dict[str, Any]:
    """What the header of a file says, as far as the listing needs it.

    ``kind``: CT, or what else it is; of a CT slice also series, study and patient (study and patient hashed unless ``salt`` is
    None; "" where there is none), frames and the fingerprint.

    Raises:
        NemesisError: it is DICOM but cannot be read.
    """
    header = read_header(path)
    if header is None:
        ending = path.suffix if ENDING.fullmatch(path.suffix) else "another ending" if path.suffix else "no ending"
        return {"kind": f"files that are not DICOM ({ending})"}
    try:
        series = str(header.get("SeriesInstanceUID", None) or "")
        sort = str(header.get("SOPClassUID", None) or header.file_meta.get("MediaStorageSOPClassUID", None) or "")
        modality = str(header.get("Modality", None) or "")
        image_type = {str(value).upper() for value in header.get("ImageType", None) or ()}
        frames = int(header.get("NumberOfFrames", None) or 1)
        patient, study = str(header.get("PatientID", None) or "").strip(), str(header.get("StudyInstanceUID", None) or "")
    except Exception as error:  # pydicom converts values when they are asked for
        what = f"its DICOM header makes no sense ({type(error).__name__})"
        raise NemesisError(Fault(str(path), what, AGAIN)) from None
    if not modality:
        raise NemesisError(Fault(str(path), "cannot be read as DICOM: it says no modality (truncated?)", AGAIN))
    if modality != "CT":
        return {"kind": modality if MODALITY.fullmatch(modality) else "unknown modality", "series": series}
    if sort.startswith(CAPTURE) or image_type & PICTURES:
        return {"kind": "CT screen capture", "series": series}
    if "LOCALIZER" in image_type:
        return {"kind": "CT localiser", "series": series}
    if sort != CT_IMAGES and not sort.startswith(f"{CT_IMAGES}."):
        return {"kind": "CT without images", "series": series}
    return {
        "kind": "CT",
        "series": series,
        "study": _hashed(salt, study) if salt is not None and study else study,
        "patient": _hashed(salt, patient) if salt is not None and patient else patient,
        "frames": frames,
        "fingerprint": fingerprint(path),
    }


def _hashed(salt: str, name: str) -> str:
    return hashlib.sha256(f"{salt}/{name}".encode()).hexdigest()[:12]


def _xml_of_series(listing: Listing, files: list[str], found: dict[str, _Series]) -> dict[str, str]:
    """SeriesInstanceUID → LIDC's XML of it."""
    drawn: dict[str, str] = {}
    for file in files:
        try:
            listing.check(file)
            uid = listing.seen.of(listing.root / file, f"lidc {VERSION}", series_of)
        except (NemesisError, OSError) as error:
            faults = error.faults if isinstance(error, NemesisError) else [Fault(file, f"cannot be read ({error})", AGAIN)]
            listing.faults += faults
            continue
        if uid is None or uid not in found:
            kind = "XML files that are no annotation of a CT series" if uid is None else "annotations of series that are not here"
            listing.passed_over[kind] += 1
        elif uid in drawn:
            what = f"annotates the same series as {drawn[uid]}"
            listing.faults.append(Fault(str(listing.root / file), what, "Keep one of the two."))
        else:
            drawn[uid] = file
    return drawn
