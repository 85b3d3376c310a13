"""Published datasets in miniature: the names, folders and extra files as they come, with few and small scans.

Each maker fills a folder and returns case → (HU, label map in our numbers or None), both house arrays (D, H, W).
"""

import json

import numpy as np
from scans import save_dicom, save_metaimage
from small_scans import RAS, body, organs, save

SHAPE = (20, 24, 16)
BTCV = ("0001", "0021", "0040")


def junk(root, *names):
    """Files beside the scans that are no scans."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("beside the scans")


def numbered(**changes):
    """organs() with other numbers: its 1 and 2 become those of the set."""
    table = np.array([0, changes["one"], changes["two"]], np.uint8)
    return table[organs()]


def btcv_raw(root):
    for n, case in enumerate(BTCV):
        save(root / f"RawData/Training/img/img{case}.nii.gz", body(seed=n), "LAS")
        save(root / f"RawData/Training/label/label{case}.nii.gz", numbered(one=6, two=13), "LAS")
    save(root / "RawData/Testing/img/img0061.nii.gz", body(seed=9), "LAS")
    junk(root, "RawData.zip", "RawData/.DS_Store")
    return {case: (body(seed=n), numbered(one=6, two=13)) for n, case in enumerate(BTCV)}


def btcv_flat(root):
    for n, case in enumerate(BTCV):
        save(root / f"imagesTr/img{case}.nii.gz", body(seed=n), "LAS")
        save(root / f"labelsTr/label{case}.nii.gz", numbered(one=1, two=2).astype(np.float32), "LAS")
    save(root / "imagesTs/img0061.nii.gz", body(seed=9), "LAS")
    junk(root, "dataset_0.json")
    return {case: (body(seed=n), numbered(one=1, two=2)) for n, case in enumerate(BTCV)}


def btcv_plain(root):
    for n, case in enumerate(BTCV):
        save(root / f"imagesTr/BTCV_{case}.nii.gz", body(seed=n), "LPS")
        save(root / f"labelsTr/BTCV_{case}.nii.gz", numbered(one=11, two=5), "LPS")
    return {f"BTCV_{case}": (body(seed=n), numbered(one=11, two=5)) for n, case in enumerate(BTCV)}


def nnunet(root, content, cases=("img0001", "img0002"), channel="_0000"):
    for n, case in enumerate(cases):
        save(root / f"imagesTr/{case}{channel}.nii.gz", body(seed=n), "LPS")
        save(root / f"labelsTr/{case}.nii.gz", organs(), "LPS")
    (root / "dataset.json").write_text(json.dumps(content))
    return {case: (body(seed=n), organs()) for n, case in enumerate(cases)}


def btcv_nnunet(root):
    labels = {"background": 0, "spleen": 1, "rkid": 2, "Esophagus": 3}
    return nnunet(root, {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 2, "file_ending": ".nii.gz"})


def synapse(root):
    """nnU-Net v1: numbers → names, a list of pairs without the channel that the files' names have."""
    training = [{"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in ("img0001", "img0002")]
    labels = {"0": "background", "1": "spleen", "2": "right kidney"}
    save(root / "imagesTs/img0061_0000.nii.gz", body(seed=9), "LPS")
    return nnunet(root, {"modality": {"0": "CT"}, "labels": labels, "training": training, "test": ["./imagesTs/img0061.nii.gz"]})


def msd_pancreas(root):
    cases = ("pancreas_001", "pancreas_290")
    training = [{"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in cases]
    save(root / "imagesTs/pancreas_002.nii.gz", body(seed=9), "LPS")
    junk(root, "imagesTr/._pancreas_001.nii.gz", "labelsTr/._pancreas_001.nii.gz", "._dataset.json")
    labels = {"0": "background", "1": "pancreas", "2": "cancer"}
    content = {"name": "Pancreas", "modality": {"0": "CT"}, "labels": labels, "numTraining": 281, "training": training}
    return nnunet(root, content, cases, channel="")


def openkbp(root):
    drawn = {"pt_1": ["Brainstem"], "pt_2": ["Brainstem", "SpinalCord"]}
    labels = {"background": 0, "Brainstem": 1, "SpinalCord": 2}
    content = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz", "labelled_structures": drawn}
    return nnunet(root, content, tuple(drawn))


def totalsegmentator(root):
    names = ["spleen", "kidney_right", "kidney_left", "gallbladder", "esophagus", "liver", "stomach", "aorta", "pancreas",
             "inferior_vena_cava", "portal_vein_and_splenic_vein", "adrenal_gland_right", "adrenal_gland_left", "sacrum",
             "vertebrae_C1", "lung_upper_lobe_left"]  # fmt: skip
    drawn = {"portal_vein_and_splenic_vein": 1, "adrenal_gland_left": 2, "sacrum": 1}  # sacrum overlaps and is not read
    known = {}
    for n, case in enumerate(("s0000", "s1428")):
        save(root / case / "ct.nii.gz", body(seed=n), "RAS")
        for name in names:
            mask = organs() == drawn.get(name, 99)
            save(root / case / f"segmentations/{name}.nii.gz", mask.astype(np.uint8), "RAS")
        known[case] = body(seed=n), numbered(one=10, two=13)
    junk(root, "meta.csv")
    return known


def kits23(root):
    for n in range(2):
        save(root / f"case_{n:05d}/imaging.nii.gz", body(seed=n), "ILP")
        save(root / f"case_{n:05d}/segmentation.nii.gz", numbered(one=1, two=3), "ILP")
        junk(root, f"case_{n:05d}/instances/kidney_instance-1_annotation-1.nii.gz")
    junk(root, "kits23.json", "README.md")
    return {f"{n:05d}": (body(seed=n), numbered(one=1, two=3)) for n in range(2)}


def flare23(root):
    for n in range(3):
        folder = "imagesTr2200" if n < 2 else "unlabeledTr1800"
        save(root / f"{folder}/FLARE23_{n:04d}_0000.nii.gz", body(seed=n), "LPS")
    save(root / "labelsTr2200/FLARE23_0000.nii.gz", numbered(one=13, two=14), "LPS")
    save(root / "labelsTr2200/FLARE23_0001.nii.gz", numbered(one=2, two=2), "LPS")
    known = {f"FLARE23_{n:04d}": (body(seed=n), None) for n in range(3)}
    known["FLARE23_0000"] = body(seed=0), numbered(one=13, two=14)
    known["FLARE23_0001"] = body(seed=1), numbered(one=2, two=2)
    return known


def luna16(root):
    uids = [f"1.3.6.1.4.1.14519.5.2.1.6279.6001.{n}" for n in (105756658031515062000744821260, 219909753224298157409438012179)]
    for n, uid in enumerate(uids):
        save_metaimage(root / f"subset{n}/{uid}.mhd", body(seed=n), compressed=n == 1)
    save_metaimage(root / f"seg-lungs-LUNA16/{uids[0]}.mhd", organs(), compressed=True)
    junk(root, "annotations.csv", "candidates.csv", "evaluationScript/tools/csvTools.py")
    return {uid: (body(seed=n), None) for n, uid in enumerate(uids)}


def covid19(root):
    names = ("volume-covid19-A-0000", "volume-covid19-A-0011_1")
    for n, name in enumerate(names):
        save(root / f"{name}.nii.gz", body(seed=n), "LAS")
    return {name: (body(seed=n), None) for n, name in enumerate(names)}


def of(patient, modality="CT", study="1.2.3", image_type=("ORIGINAL", "PRIMARY", "AXIAL"), sop=None):
    """A change of save_dicom's slices."""

    def change(_, dataset):
        dataset.PatientID, dataset.Modality, dataset.StudyInstanceUID = patient, modality, study
        dataset.ImageType = list(image_type)
        if sop:
            dataset.SOPClassUID = sop
        return dataset

    return change


def hnscc(root):
    """Two CT of one patient, one of another; PET, contours and a scout beside them."""
    first, second = "HNSCC-01-0001", "HNSCC-01-0002"
    visit = "12-05-1998-NA-RT SIMULATION-48682"
    save_dicom(root / first / visit / "10859.000000-72029", body(seed=0), series="1.2.1", change=of(first))
    save_dicom(root / first / visit / "2.000000-PET-1", body(seed=5), series="1.2.2", change=of(first, "PT"))
    save_dicom(root / first / visit / "1.000000-RTSTRUCT", body((9, 8, 8)), series="1.2.3", change=of(first, "RTSTRUCT"))
    save_dicom(root / first / "02-05-1999-PET CT" / "3.000000-CT", body(seed=1), series="1.2.4", syntax="jpeg-lossless",
               change=of(first, study="1.2.9"))  # fmt: skip
    scout = of(second, image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"))
    save_dicom(root / second / visit / "1.000000-SCOUT", body((9, 8, 8)), series="1.2.5", change=scout)
    save_dicom(root / second / visit / "2.000000-CT", body(seed=2), series="1.2.6", syntax="rle", change=of(second))
    junk(root, "LICENSE", "metadata.csv", f"{second}/.hidden")
    return {first: [body(seed=0), body(seed=1)], second: [body(seed=2)]}


def covid19_dicom(root):
    save_dicom(root / "COVID-19-AR-1/01-01-2012/1", body(seed=3), series="1.5.1", change=of("COVID-19-AR-1"))
    return {"COVID-19-AR-1": [body(seed=3)]}


def ring(low, high):
    """The pixels (column, row) around the box from ``low`` to ``high``, both inside, one after the other."""
    (a, b), (c, d) = (low[0] - 1, low[1] - 1), (high[0] + 1, high[1] + 1)
    across = [(x, b) for x in range(a, c)] + [(c, y) for y in range(b, d)]
    return across + [(x, d) for x in range(c, a, -1)] + [(a, y) for y in range(d, b, -1)]


def in_file(h, w):
    """Voxel (H, W) → pixel (column, row) of a slice as save_dicom stores it, LPS."""
    return SHAPE[1] - 1 - h, SHAPE[2] - 1 - w


def roi(d, points, inside=True, z=None):
    """An outline in slice d by its (column, row) points."""
    z = float(RAS[2, 2] * d) if z is None else z
    edges = "".join(f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for x, y in points)
    uid, inclusion = f"<imageSOP_UID>1.3.1.{d + 1}</imageSOP_UID>", f"<inclusion>{str(inside).upper()}</inclusion>"
    return f"<roi><imageZposition>{z}</imageZposition>{uid}{inclusion}{edges}</roi>"


def box(depths, heights, widths):
    """Outlines of the box of voxels from the first to the last of each, both inside."""
    corners = np.array([in_file(heights[0], widths[0]), in_file(heights[1], widths[1])])
    return [roi(d, ring(corners.min(0), corners.max(0))) for d in range(depths[0], depths[1] + 1)]


def lidc_xml(series, readers, root="LidcReadMessage"):
    """LIDC's XML: readers → nodules → outlines."""
    sessions = "".join(
        "<readingSession><annotationVersion>3.12</annotationVersion><servicingRadiologistID>anonymous</servicingRadiologistID>"
        + "".join(
            f"<unblindedReadNodule><noduleID>{n}</noduleID>{''.join(rois)}</unblindedReadNodule>"
            for n, rois in enumerate(nodules)
        )
        + "<nonNodule><nonNoduleID>7</nonNoduleID><imageZposition>3.0</imageZposition>"
        "<locus><xCoord>9</xCoord><yCoord>9</yCoord></locus></nonNodule></readingSession>"
        for nodules in readers
    )
    header = "<ResponseHeader><TaskDescription>Second unblinded read</TaskDescription>"
    header += f"<SeriesInstanceUid>{series}</SeriesInstanceUid></ResponseHeader>"
    return f'<?xml version="1.0" encoding="UTF-8"?><{root} uid="1" xmlns="http://www.nih.gov">{header}{sessions}</{root}>'


def lidc(root):
    """Two series with XML, beside the slices and in a folder of its own; a radiograph with an XML of another kind."""
    one, two = root / "LIDC-IDRI-0001/01-01-2000-30178/3000566-03192", root / "LIDC-IDRI-0002/01-01-2000-98329/3000522-04919"
    save_dicom(one, body(seed=0), series="1.3.1", change=of("LIDC-IDRI-0001"))
    save_dicom(two, body(seed=1), series="1.3.2", change=of("LIDC-IDRI-0002"))
    first, second = box((8, 11), (6, 12), (5, 9)), box((9, 13), (8, 14), (4, 8))
    small = [roi(5, [in_file(10, 10)])]
    (one / "069.xml").write_text(lidc_xml("1.3.1", [[first, small], [second], [small], []]))
    (root / "tcia-lidc-xml/157").mkdir(parents=True)
    (root / "tcia-lidc-xml/157/158.xml").write_text(lidc_xml("1.3.2", [[small], [], [], []]))
    (root / "tcia-lidc-xml/157/gone.xml").write_text(lidc_xml("1.3.99", [[], []]))
    radiograph = root / "LIDC-IDRI-0001/01-01-2000-35511/3000923-62357"
    save_dicom(radiograph, body((8, 9, 8)), series="1.3.3", change=of("LIDC-IDRI-0001", "DX"))
    (radiograph / "071.xml").write_text(lidc_xml("1.3.3", [], "IdriReadMessage"))
    nodule = np.zeros(SHAPE, np.uint8)
    nodule[9:12, 8:13, 5:9] = 1
    return {"LIDC-IDRI-0001": [body(seed=0)], "LIDC-IDRI-0002": [body(seed=1)]}, nodule
