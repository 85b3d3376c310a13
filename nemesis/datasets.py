"""Where scans come from: the sections of ``datasets:`` in a configuration, one per reader."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from nemesis.section import Section, key

BTCV_LABELS = {
    "spleen": 1,
    "right kidney": 2,
    "left kidney": 3,
    "gallbladder": 4,
    "oesophagus": 5,
    "liver": 6,
    "stomach": 7,
    "aorta": 8,
    "inferior vena cava": 9,
    "portal and splenic veins": 10,
    "pancreas": 11,
    "right adrenal": 12,
    "left adrenal": 13,
}
SAMPLE = Path("results/data/sample")  # where `nemesis data fetch sample` puts its scans
NAME = r"^[A-Za-z0-9_-]+$"
CALLED = "Name used in tables and folders"
ROOT = "Folder of the {}, inside data_root where that is set, else inside the working folder; null takes data_root itself"
EXPECTED = (
    "Scans of the set as published: while its folder is not there, a dry run and `nemesis plan` go on with so many stand-ins"
)


class PhantomCohort(Section):
    """The embedded cohort of synthetic torsos."""

    reader: Literal["phantom"]
    name: str = key("phantom", CALLED, pattern=NAME)
    subjects: int = key(48, "Number of synthetic patients", "patients", ge=2)
    seed: int = key(0, "Seed of the cohort", ge=0)
    base_spacing_mm: float = key(5.0, "Voxel size around which each subject's own spacing varies", "mm", gt=0)


class ScanFiles(Section):
    """Scans of one file each (NIfTI, NRRD or MetaImage, told by content), with or without label maps.

    In patterns ``{case}`` stands for the case's name and ``*`` for anything, neither beyond a ``/``. A label pattern whose
    last part holds ``{organ}`` means a folder with one binary mask per organ.
    """

    reader: Literal["files"]
    name: str = key(..., CALLED, pattern=NAME)
    root: str | None = key(None, ROOT.format("scans"), "path")
    expected: int | None = key(None, EXPECTED, "scans", ge=1)
    image: str = key("{case}/image.nii.gz", "Where a case's scan lies under the root; {case} stands for its name", "path")
    labels: dict[Literal["exhaustive", "partial", "pseudo"], str] = key(
        {},
        "Where label maps lie, by kind: exhaustive (every organ drawn), partial (only the organs that occur in the map, or have "
        "a mask, were drawn, the rest is unknown), pseudo (made by a network: never scored as truth)",
        "path",
    )
    label_numbers: dict[str, int] = key(
        BTCV_LABELS, "Number of each organ in the label maps; of masks, the organs that are read", "label number"
    )
    masks: dict[str, str] = key({}, "What {organ} is in the name of an organ's mask, where it is not the organ's name", "name")

    @model_validator(mode="after")
    def _patterns_name_the_case(self) -> ScanFiles:
        for pattern in (self.image, *self.labels.values()):
            if pattern.count("{case}") != 1:
                raise ValueError(f"'{pattern}' must contain {{case}} exactly once")
        if "{organ}" in self.image:
            raise ValueError(f"'{self.image}': {{organ}} belongs into patterns of `labels`")
        for pattern in self.labels.values():
            folder, _, name = pattern.rpartition("/")
            if "{organ}" in pattern and (name.count("{organ}") != 1 or "{case}" not in folder or "*" in name):
                raise ValueError(
                    f"'{pattern}': {{organ}} stands once, after the last /, beside no * and below a folder that {{case}} names"
                )
        return self

    @model_validator(mode="after")
    def _masks_are_of_organs(self) -> ScanFiles:
        if unknown := sorted(set(self.masks) - set(self.label_numbers)):
            raise ValueError(f"masks names what label_numbers does not: {', '.join(unknown)}")
        return self


class NnunetFolder(Section):
    """A folder of nnU-Net (v1 or v2) or of the Medical Segmentation Decathlon: dataset.json, imagesTr/, labelsTr/.

    ``labelled_structures`` in dataset.json, case → organs that were drawn in it, marks partial labels.
    """

    reader: Literal["nnunet"]
    name: str = key(..., CALLED, pattern=NAME)
    root: str | None = key(None, ROOT.format("dataset.json"), "path")
    expected: int | None = key(None, EXPECTED, "scans", ge=1)
    names: dict[str, str] = key({}, "Our name of an organ, by the one that dataset.json gives it (upper or lower case)", "name")


class DicomTree(Section):
    """A tree of folders with DICOM files, however nested: every CT volume in it is a case of its patient."""

    reader: Literal["dicom"]
    name: str = key(..., CALLED, pattern=NAME)
    root: str | None = key(None, ROOT.format("tree"), "path")
    expected: int | None = key(None, EXPECTED, "scans", ge=1)
    annotations: Literal["lidc"] | None = key(
        None, "Labels among the series: `lidc` reads LIDC-IDRI's XML, wherever in the tree; label 1, `nodule`, is what at least "
        "half of the readers outlined"
    )  # fmt: skip
    public_identifiers: bool = key(
        False, "Call patients by their PatientID, as a published and de-identified set may; otherwise by a salted hash of it"
    )
    salt: str | None = key(
        None, "Salt of that hash, for the same names elsewhere; null: a random one, kept in results/data/salt", min_length=8
    )


FolderDataset = Annotated[ScanFiles | NnunetFolder | DicomTree, Field(discriminator="reader")]
Dataset = Annotated[PhantomCohort | ScanFiles | NnunetFolder | DicomTree, Field(discriminator="reader")]


class CardDataset(Section):
    """A published set whose card says in which layouts it comes (`nemesis data cards`); the first that fits is read.

    Any other key of that layout's reader may be given, too, and then stands in place of the card's.
    """

    model_config = ConfigDict(extra="allow")

    reader: Literal["card"]
    name: str = key(..., f"{CALLED}; the card's, in upper or lower case, where `card` is null", pattern=NAME)
    card: str | None = key(None, "Name of the card, where the set is to be called otherwise")
    root: str | None = key(None, ROOT.format("set"), "path")
    expected: int | None = key(None, f"{EXPECTED}; null takes the card's number", "scans", ge=1)


Entry = Annotated[PhantomCohort | ScanFiles | NnunetFolder | DicomTree | CardDataset, Field(discriminator="reader")]
