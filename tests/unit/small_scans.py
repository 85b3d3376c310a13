"""Small scans for the tests of the data stage: a body of noisy soft tissue in air, in house order (D, H, W)."""

from pathlib import Path

import nibabel
import numpy as np

REAL = Path(__file__).resolve().parents[3] / "shared" / "data"
RAS = np.diag([2.0, 1.5, 3.0, 1.0])  # of the RAS array: x, y, z, that is H, W, D


def body(shape=(20, 24, 16), seed=0):
    """int16 HU: −1000 around an off-centre box of soft tissue, so that no axis is symmetric."""
    hu = np.full(shape, -1000, np.int16)
    inside = tuple(slice(n // 5, n - n // 8) for n in shape)
    noise = np.random.default_rng(seed).normal(50, 20, hu[inside].shape)
    hu[inside] = noise.astype(np.int16)
    return hu


def organs(shape=(20, 24, 16)):
    """uint8: number 1 in the inferior half of the box, number 2 in a corner of it."""
    labels = np.zeros(shape, np.uint8)
    box = [slice(n // 5, n - n // 8) for n in shape]
    labels[box[0].start : shape[0] // 2, box[1], box[2]] = 1
    labels[shape[0] // 2 : shape[0] // 2 + 2, box[1].start : box[1].start + 2, box[2].start : box[2].start + 2] = 2
    return labels


def save(path, house, axes="RAS", affine=RAS, **header):
    """Write a house array as NIfTI in any orientation of storage; ``affine`` is that of the RAS array."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(np.ascontiguousarray(house.transpose(1, 2, 0)), affine)
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(tuple(axes))
    )
    image = image.as_reoriented(turn)
    for name, value in header.items():
        image.header[name] = value
    nibabel.save(image, path)
    return path
