"""The embedded demo cohort: procedural CT phantoms of the torso, exactly labelled, from NumPy and SciPy alone.

A subject is made in two steps. `_plan` draws the anatomy: habitus, pose, contrast phase, operations, field of view and
one jittered copy of every structure in the tables below. `_Canvas` renders it on a grid as a painter would: each
structure is a signed distance (mm), blended over what lies beneath it through an edge one voxel wide (the partial-
volume effect), and claims the voxels whose centres lie inside. The grid never touches the anatomy: a subject is the
same person at every resolution, and only the measurement noise is drawn per voxel.

Template frame: mm, x to the patient's right, y anterior, z superior; the origin lies amid the body at the level of the
first lumbar vertebra. Every point and every triple of radii in this file is (x, y, z); arrays are (D, H, W) = (z, x,
y).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

VERSION = 1  # bump whenever the same (seed, index, spacing) gives other voxels

SPLEEN, RIGHT_KIDNEY, LEFT_KIDNEY, GALLBLADDER, LIVER, STOMACH, AORTA, CAVA, PANCREAS = 1, 2, 3, 4, 6, 7, 8, 9, 11
LABELLED = (SPLEEN, RIGHT_KIDNEY, LEFT_KIDNEY, GALLBLADDER, LIVER, STOMACH, AORTA, CAVA, PANCREAS)  # BTCV numbers
PHASES = ("none", "arterial", "portal-venous")

Floats = NDArray[np.float32]
Box = tuple[slice, slice, slice]
Point = tuple[float, float, float]
Fill = Literal["solid", "lobulated", "mottled", "kidney", "hollow", "colon", "bone"]


@dataclass(frozen=True)
class PhantomSubject:
    """One scan. `annotated` lists the labels that are exhaustive here; `absent` those of organs removed by surgery."""

    hu: NDArray[np.int16]  # (D, H, W), D inferior->superior, H left->right, W posterior->anterior
    labels: NDArray[np.uint8]  # (D, H, W), BTCV numbers, 0 elsewhere
    spacing: tuple[float, float, float]  # mm, (D, H, W)
    affine: NDArray[np.float64]  # 4x4, RAS+, of the RAS array hu.transpose(1, 2, 0)
    annotated: tuple[int, ...]
    phase: str
    absent: tuple[int, ...]


# ---------------------------------------------------------------------------------------------------------- the tables

# HU without contrast, arterial, portal-venous; SD between subjects; amplitude of the fine and of the coarse texture.
TISSUES: dict[str, tuple[float, float, float, float, float, float]] = {
    "fat": (-102, -102, -100, 5, 5, 5),
    "skin": (20, 25, 30, 8, 0, 0),
    "muscle": (52, 56, 62, 6, 5, 5),
    "lung": (-840, -835, -830, 30, 25, 30),
    "cortical": (520, 520, 520, 80, 40, 0),
    "marrow": (160, 165, 170, 35, 40, 15),
    "cartilage": (105, 105, 110, 12, 12, 0),
    "disc": (78, 78, 80, 8, 4, 0),
    "cord": (32, 34, 36, 4, 4, 0),
    "arterial": (42, 290, 150, 14, 3, 0),
    "venous": (40, 75, 135, 12, 6, 6),
    "heart": (46, 105, 105, 8, 6, 5),
    "liver": (57, 70, 106, 11, 5, 8),
    "spleen": (48, 112, 112, 9, 4, 4),
    "kidney": (34, 170, 165, 12, 5, 4),
    "medulla": (31, 72, 140, 10, 5, 4),
    "pancreas": (42, 96, 88, 9, 9, 6),
    "stomach": (40, 72, 82, 8, 5, 0),
    "bowel": (40, 80, 88, 9, 6, 0),
    "bile": (9, 9, 10, 6, 3, 2),
    "fluid": (8, 8, 9, 5, 3, 0),
    "node": (40, 60, 78, 10, 5, 0),
    "gas": (-960, -960, -960, 12, 0, 0),
}

# Envelopes of the trunk by height z: half-widths (mm) along x and y of the muscles' outer surface, then of the cavity.
TRUNK_Z = (-280, -200, -130, -60, 0, 80, 160, 220, 260, 320)
TRUNK = (
    (162, 160, 148, 141, 144, 150, 158, 164, 160, 120),
    (104, 102, 97, 94, 95, 100, 104, 100, 92, 75),
    (100, 106, 122, 125, 131, 136, 127, 98, 66, 36),
    (74, 76, 78, 79, 83, 88, 84, 70, 52, 32),
)
SPINE_Z = (-280, -210, -150, -90, -30, 40, 120, 200, 300)
SPINE_Y = (-92, -86, -62, -48, -51, -59, -67, -66, -48)  # lordosis and kyphosis: y of the vertebral bodies (mm)


@dataclass(frozen=True)
class Blob:
    """An ellipsoid, turned about its own centre by `turn` degrees about x, then y, then z."""

    at: Point
    radii: Point
    turn: Point = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Tube:
    """A smooth curve through points (x, y, z, radius), all in mm."""

    path: tuple[tuple[float, float, float, float], ...]


Part = Blob | Tube


@dataclass(frozen=True)
class Organ:
    """A structure: the union of `parts` less `minus`. The table's order is the order of painting."""

    name: str
    tissue: str
    parts: tuple[Part, ...]
    label: int = 0
    minus: tuple[Part, ...] = ()
    fill: Fill = "solid"
    pad: float = 0.0  # mm of fat that separates it from what was painted before
    home: Literal["abdomen", "chest", "anywhere"] = "abdomen"  # what clips it: a cavity, or the trunk's muscles
    wander: float = 4.0  # SD of its displacement between subjects (mm)
    absent: float = 0.0  # probability that surgery took it


def _pair(part: Part) -> tuple[Part, Part]:
    """A part and its mirror image: right, left."""
    if isinstance(part, Blob):
        (x, y, z), (tx, ty, tz) = part.at, part.turn
        return part, replace(part, at=(-x, y, z), turn=(tx, -ty, -tz))
    return part, Tube(tuple((-x, y, z, r) for x, y, z, r in part.path))


# fmt: off
FRAME: tuple[Organ, ...] = (  # outside the cavities, painted first
    Organ("erector muscles", "muscle", _pair(Tube(((32, -88, -230, 20), (33, -84, -100, 24), (32, -88, 0, 22),
          (28, -94, 120, 17), (26, -90, 260, 14)))), home="anywhere", wander=1, pad=2),
    Organ("quadratus", "muscle", _pair(Tube(((72, -68, -130, 13), (60, -66, -70, 14), (45, -66, -15, 8)))),
          home="anywhere", wander=2),
    Organ("scapulae", "cortical", _pair(Blob((88, -86, 205), (40, 5, 58), (0, 0, 24))), fill="bone", home="anywhere"),
    Organ("clavicles", "cortical", _pair(Tube(((18, 62, 238, 7), (60, 66, 250, 6), (125, 25, 268, 7)))), fill="bone",
          home="anywhere"),
    Organ("pelvis", "cortical", _pair(Blob((86, -38, -190), (8, 68, 72), (0, 12, -42))), fill="bone", home="anywhere",
          wander=2),
    Organ("femurs", "cortical", _pair(Blob((92, 6, -268), (25, 25, 25))), fill="bone", home="anywhere", wander=2),
    Organ("sacrum", "cortical", (Blob((0, -84, -205), (46, 20, 58), (18, 0, 0)),), fill="bone", home="anywhere",
          wander=2),
)
ORGANS: tuple[Organ, ...] = (
    Organ("psoas", "muscle", _pair(Tube(((24, -46, 5, 7), (36, -44, -50, 15), (47, -34, -110, 21), (66, -4, -190, 22),
          (76, 22, -270, 18)))), wander=2, home="anywhere"),
    Organ("bladder", "fluid", (Blob((0, 18, -235), (42, 34, 34)),), pad=3, wander=5),
    Organ("heart", "heart", (Blob((-26, 26, 102), (50, 44, 58), (-18, 32, 20)), Blob((8, 22, 118), (36, 40, 44))),
          home="chest", pad=5, wander=5),
    Organ("left chambers", "arterial", (Blob((-42, 20, 92), (22, 20, 36), (-18, 40, 20)),
          Blob((-8, -6, 128), (28, 18, 22))), home="chest", wander=2),
    Organ("right chambers", "venous", (Blob((-12, 52, 92), (24, 16, 32), (0, 30, 20)),
          Blob((28, 20, 108), (20, 24, 30))), home="chest", wander=2),
    Organ("pulmonary arteries", "venous", (Tube(((-16, 44, 130, 13), (-18, 14, 160, 13), (20, 0, 158, 10),
          (48, -8, 150, 8))), Tube(((-18, 14, 160, 11), (-34, -10, 160, 10), (-52, -18, 152, 8)))), home="chest",
          wander=2),
    Organ("superior cava", "venous", (Tube(((28, 20, 128, 9), (26, 16, 180, 9), (20, 14, 240, 7))),), home="chest",
          wander=2),
    Organ("arch branches", "arterial", (Tube(((8, 14, 200, 6), (18, 4, 270, 5))),
          Tube(((-12, -8, 204, 5), (-22, -8, 270, 4)))), home="chest", wander=1),
    Organ("airways", "gas", (Tube(((0, -16, 290, 8), (1, -20, 170, 8))), Tube(((1, -20, 170, 7), (40, -24, 142, 5))),
          Tube(((1, -20, 170, 7), (-42, -26, 140, 5)))), home="anywhere", wander=2),
    Organ("oesophagus", "stomach", (Tube(((-2, -36, 280, 7), (-2, -38, 180, 8), (-6, -34, 110, 8), (-20, -16, 56, 8),
          (-38, -4, 44, 9))),), home="anywhere", wander=2),
    Organ("ascending colon", "bowel", (Tube(((86, 8, -165, 25), (95, -6, -125, 22), (96, -4, -80, 22),
          (92, 12, -52, 20))),), fill="colon", pad=3),
    Organ("transverse colon", "bowel", (Tube(((92, 20, -50, 19), (58, 62, -72, 18), (0, 70, -86, 17),
          (-55, 62, -64, 17), (-98, 8, -8, 17))),), fill="colon", pad=3, wander=7),
    Organ("descending colon", "bowel", (Tube(((-104, -8, -8, 16), (-104, -18, -70, 15), (-100, -6, -130, 15),
          (-74, 6, -180, 14), (-20, -8, -205, 15), (4, -40, -235, 16))),), fill="colon", pad=3),
    Organ("liver", "liver", (Blob((74, 2, 6), (66, 84, 74), (8, -12, 6)),
          Blob((14, 42, 30), (74, 42, 33), (0, -14, 10)), Blob((84, -6, -40), (46, 60, 46), (0, 8, 0))),
          minus=(Blob((38, 16, -30), (26, 22, 24)), Blob((6, 0, -12), (36, 40, 22))), label=LIVER, pad=2, wander=5),
    Organ("adrenals", "muscle", (Tube(((34, -34, 18, 4), (38, -44, 0, 4))),
          Tube(((-36, -26, 16, 4), (-42, -38, 0, 4)))), wander=3),
    Organ("spleen", "spleen", (Blob((-102, -36, 26), (30, 46, 52), (18, 16, 20)),),
          minus=(Blob((-60, -14, 22), (36, 40, 60), (0, 0, 20)),), label=SPLEEN, pad=3, wander=6, absent=0.07),
    Organ("stomach", "stomach", (Tube(((-58, -12, 50, 30), (-66, 12, 24, 33), (-60, 42, -10, 27), (-26, 58, -34, 20),
          (14, 48, -30, 13))),), label=STOMACH, fill="hollow", pad=3, wander=6, absent=0.05),
    Organ("duodenum", "bowel", (Tube(((16, 46, -30, 12), (44, 26, -32, 12), (50, 6, -56, 12), (38, -4, -84, 11),
          (0, 4, -90, 10), (-32, 14, -66, 11))),), fill="hollow", pad=1, wander=3),
    Organ("pancreas", "pancreas", (Tube(((32, 8, -62, 11), (31, 14, -42, 16), (10, 27, -22, 11), (-18, 27, -10, 12),
          (-52, 8, 2, 12), (-84, -18, 14, 10))),), label=PANCREAS, fill="lobulated", pad=2, wander=3, absent=0.03),
    Organ("portal vein", "venous", (Tube(((18, 6, -34, 6), (20, 6, -14, 7), (44, 10, 10, 6), (74, 2, 18, 4))),
          Tube(((18, 6, -20, 6), (-22, 14, -8, 5), (-78, -20, 18, 4)))), wander=2),
    Organ("right kidney", "kidney", (Blob((64, -50, -40), (28, 25, 54), (10, -10, 25)),),
          minus=(Blob((43, -40, -41), (16, 12, 21), (0, 0, 25)),), label=RIGHT_KIDNEY, fill="kidney", pad=5, wander=6,
          absent=0.06),
    Organ("left kidney", "kidney", (Blob((-66, -50, -26), (28, 26, 56), (10, 10, -25)),),
          minus=(Blob((-45, -40, -27), (16, 12, 22), (0, 0, -25)),), label=LEFT_KIDNEY, fill="kidney", pad=5, wander=6,
          absent=0.08),
    Organ("gallbladder", "bile", (Blob((56, 50, -46), (17, 16, 32), (38, 14, 0)),), label=GALLBLADDER, pad=1, wander=5,
          absent=0.18),
    Organ("cava", "venous", (Tube(((22, -20, -108, 10), (24, -24, -50, 11), (25, -24, 0, 12), (27, -10, 50, 13),
          (28, 8, 84, 13))),), label=CAVA, pad=1, home="anywhere", wander=2),
    Organ("iliac veins", "venous", _pair(Tube(((18, -24, -108, 9), (38, -34, -150, 8), (62, -8, -240, 8)))), wander=2),
    Organ("iliac arteries", "arterial", _pair(Tube(((2, -16, -102, 7), (34, -20, -150, 6), (58, 10, -240, 6)))),
          wander=2),
    Organ("renal vessels", "venous", (Tube(((24, -24, -36, 5), (48, -38, -40, 5))),
          Tube(((20, -8, -30, 5), (-48, -36, -28, 5)))), wander=1),
    Organ("visceral arteries", "arterial", (Tube(((-7, -18, -16, 5), (-6, 0, -40, 4), (4, 24, -110, 3))),), wander=1),
    Organ("aorta", "arterial", (Tube(((6, 30, 112, 16), (16, 26, 160, 16), (8, 10, 196, 14), (-16, -22, 200, 13),
          (-26, -44, 172, 13), (-25, -47, 110, 12), (-16, -40, 50, 12), (-9, -28, -10, 11), (-7, -19, -60, 10),
          (-4, -18, -104, 9))),), label=AORTA, pad=1, home="anywhere", wander=2),
)
# fmt: on

# Fields of view by share: lowest and highest z (mm) of the scan, each moved by some 15 mm.
SCANS = ((0.38, -235, 262), (0.34, -245, 85), (0.16, -50, 285), (0.12, -130, 110))

# Smooth random fields: lattice step (mm) along D, H, W. A field's name says what it is for.
FIELDS: dict[str, Point] = {
    **{f"sway {axis}": (75.0, 75.0, 75.0) for axis in "xyz"},  # the body's own shape
    **{f"bulge {axis}": (32.0, 32.0, 32.0) for axis in "xyz"},  # the organs' outlines
    "fine": (7.0, 7.0, 7.0),
    "coarse": (16.0, 16.0, 16.0),
    "broad": (42.0, 42.0, 42.0),
    "fibre": (48.0, 9.0, 9.0),  # muscle bundles run along the body
}
REACH = 360.0  # the fields cover +- this many mm around the isocentre


# ------------------------------------------------------------------------------------------------- drawing the anatomy


@dataclass(frozen=True)
class _Plan:
    """Everything about a subject that does not depend on the grid."""

    phase: int
    hu: dict[str, float]
    frame: tuple[Organ, ...]
    organs: tuple[Organ, ...]
    absent: tuple[int, ...]
    trees: tuple[tuple[Part, ...], ...]  # vessels of the lungs, of the mesentery and of the liver
    bowel: Organ
    lesions: tuple[tuple[int, Blob, float], ...]  # (host label, shape, HU)
    forward: NDArray[np.float64]  # 3x3, template -> world: world = forward @ template + isocentre shift
    shift: NDArray[np.float64]
    habitus: dict[str, float]
    low: NDArray[np.float64]  # world corner of the field of view (mm)
    extent: NDArray[np.float64]  # mm, (x, y, z)
    stretch: tuple[float, float]  # spacing over the base spacing: slices, in-plane
    noise: tuple[float, float]  # SD at 5 mm (HU), blur (mm)


def _rng(seed: int, index: int, stream: int) -> np.random.Generator:
    """A counter-based generator of its own for each use, so that one use never shifts the numbers of another."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, index, stream])))


def _rotation(turn: Point) -> NDArray[np.float64]:
    """3x3 rotation by degrees about x, then y, then z."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    return np.asarray(np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]]) @ about_y @ about_x)


def _vary(organ: Organ, rng: np.random.Generator) -> Organ:
    """This subject's copy of a structure: moved, resized (log-normal, 8 %) and, for ellipsoids, turned a little."""
    move = rng.normal(0, organ.wander, 3)
    grow = np.exp(rng.normal(0, 0.05) + rng.normal(0, 0.06, 3))
    turn = rng.normal(0, 5 if organ.label else 2, 3)

    def part(p: Part) -> Part:
        if isinstance(p, Tube):
            path = np.array(p.path) * (1, 1, 1, grow[0])
            path[:, :3] += move + rng.normal(0, 0.4 * organ.wander, (len(path), 3))
            return Tube(tuple(map(tuple, path)))
        return Blob(tuple(np.add(p.at, move)), tuple(np.multiply(p.radii, grow)), tuple(np.add(p.turn, turn)))

    return replace(organ, parts=tuple(map(part, organ.parts)), minus=tuple(map(part, organ.minus)))


def _tree(rng: np.random.Generator, root: Point, spread: Point, radius: float, depth: int) -> tuple[Part, ...]:
    """A branching vessel tree: tubes of a falling radius that fork `depth` times from `root` on into `spread` (mm)."""
    parts: list[Part] = []
    tips = [(np.array(root, float), 0.45 * np.array(spread, float))]
    for level in range(depth):
        forks = []
        for start, heading in tips:
            stop = start + heading
            parts.append(Tube(((*start, radius * 0.75**level), (*stop, radius * 0.75 ** (level + 1)))))
            for _ in range(2):
                aim = heading + rng.normal(0, 0.75, 3) * np.linalg.norm(heading)
                forks.append((stop, 0.74 * aim * np.linalg.norm(heading) / np.linalg.norm(aim)))
        tips = forks
    return tuple(parts)


def _small_bowel(rng: np.random.Generator) -> Organ:
    """Loops of small bowel: one long tube, to and fro through a jittered lattice in the middle of the abdomen."""
    points = []
    layers, jejunum = enumerate(np.linspace(-205, -88, 6)), enumerate((-66, -44, -24))
    rows = [(k, j, -66, 62, y, z) for k, z in layers for j, y in enumerate((-14, 11, 36, 62))]
    rows += [(k, j, -86, -8, y, z) for k, z in jejunum for j, y in enumerate((12, 36, 60))]
    for k, j, near, far, y, z in rows:
        points += [(x, y, z) for x in np.linspace(near, far, 6)[:: (-1) ** (j + k)]]
    path = np.array(points) + rng.normal(0, 8, (len(points), 3))
    radii = np.clip(rng.normal(11, 2.2, len(points)), 6, 16)
    path = np.column_stack((path, radii))
    return Organ("small bowel", "bowel", (Tube(tuple(map(tuple, path))),), fill="hollow")


def _plan(seed: int, index: int) -> _Plan:
    """Draw the anatomy of a subject. Every draw is made for every subject, whatever it is used for."""
    rng = _rng(seed, index, 0)
    phase = int(rng.choice(3, p=[0.35, 0.2, 0.45]))
    hu = {name: row[phase] + row[3] * float(np.clip(rng.normal(), -2.5, 2.5)) for name, row in TISSUES.items()}
    hu["liver"] -= 28 * float(rng.random() < 0.15)  # steatosis
    bolus = float(rng.normal(1, 0.15))  # timing and dose: one factor for the blood of the whole body
    for blood in ("arterial", "venous"):
        hu[blood] = 42 + (hu[blood] - 42) * bolus
    absent = {o.label for o in ORGANS if rng.random() < o.absent}

    lungs: list[Part] = []
    for side in (1, -1):  # upper, lower and middle lobe
        for (x, y, z), (dx, dy, dz) in (((46, -8, 150), (34, 30, 62)), ((48, -18, 142), (42, -50, -28)),
                                        ((46, -8, 146), (50, 24, -20))):  # fmt: skip
            lungs += _tree(rng, (side * x, y, z), (side * dx, dy, dz), 7.0, 5)
    liver: list[Part] = []
    for root, spread in (((30, -12, 52), (60, 30, -30)), ((28, -10, 50), (50, -40, -60)), ((66, 2, 16), (44, 36, 40))):
        liver += _tree(rng, root, spread, 5.0, 4)
    mesentery = [part for x in (-50, 10, 60) for part in _tree(rng, (0, 4, -44), (x, 30, -90), 4.0, 5)]
    lesions: list[tuple[int, Blob, float]] = []
    for host, at, reach in ((LIVER, (72, 0, 5), 40), (RIGHT_KIDNEY, (72, -55, -40), 28),
                            (LEFT_KIDNEY, (-74, -55, -26), 28), (SPLEEN, (-105, -40, 25), 22)):  # fmt: skip
        for _ in range(int(rng.poisson(0.5))):
            centre, radius = np.array(at) + rng.uniform(-1, 1, 3) * reach, float(rng.uniform(4, 15))
            lesions.append((host, Blob(tuple(centre), (radius,) * 3), float(rng.choice([10, 12, 45, 85]))))

    size = np.exp(rng.normal(0, 0.06) + rng.normal(0, 0.035, 3))
    habitus = {
        "subcutaneous": float(np.clip(rng.lognormal(np.log(15), 0.5), 4, 45)),  # mm of fat at the flank
        "visceral": float(rng.beta(1.6, 2.2)),  # widens the abdominal cavity around organs of the same size
        "breast": float(rng.uniform(12, 40) * (rng.random() < 0.5)),  # mm
        "fascia": float(rng.uniform(25, 80)),  # HU lost in the fat planes between muscle bundles
        "breath": float(rng.normal(0, 9)),  # mm the diaphragm stands higher or lower
        "bend x": float(rng.normal(0, 5)),
        "bend y": float(rng.normal(0, 4)),
        "bend at": float(rng.uniform(0, 2 * np.pi)),
        "gas": float(rng.normal(1.25, 0.3)),  # the height, in SD of the field, above which bowel holds gas
        "content": float(rng.choice([14, 32, 48, 190], p=[0.35, 0.3, 0.2, 0.15])),  # HU; 190 is oral contrast medium
        "stomach level": float(rng.normal(38, 14)),  # y (mm) of the air-fluid level: the patient lies on the back
        "table": float(rng.uniform(2, 9)) if rng.random() < 0.6 else np.inf,  # mm below the back
        "disc": float(rng.random() < 0.3),  # the scanner reconstructs a disc and pads around it
    }
    turn = rng.normal(0, (2.0, 2.0, 3.5))
    forward = _rotation(tuple(turn)) @ np.diag(size)

    row = SCANS[int(rng.choice(len(SCANS), p=[s[0] for s in SCANS]))]
    foot, head = row[1] + rng.normal(0, 14), row[2] + rng.normal(0, 14)
    margin = rng.uniform(0, 46, 2)
    shift = np.append(rng.uniform(-1, 1, 2) * (margin + 8), 0.0)  # off-centre; a little of the skin may be cut off
    wide = habitus["wide"] = 1 + 0.16 * habitus["visceral"]
    flank = 158 * wide * size[0] + habitus["subcutaneous"]
    back = habitus["back"] = float(shift[1] - 99 * size[1] - 0.9 * habitus["subcutaneous"])
    depth = (199 + 210 * (wide - 1)) * size[1] + 1.8 * habitus["subcutaneous"]
    # The couch stays in view: the field of view reaches a little further behind than in front.
    low = np.array([-flank - margin[0], back - shift[1] - margin[1] - 12, foot * size[2]])
    extent = np.array([2 * (flank + margin[0]), depth + 2 * margin[1] + 12, (head - foot) * size[2]])

    return _Plan(
        phase, hu, tuple(_vary(o, rng) for o in FRAME), tuple(_vary(o, rng) for o in ORGANS),
        tuple(sorted(absent - {0})),
        (tuple(lungs), tuple(mesentery), tuple(liver)), _small_bowel(rng), tuple(lesions), forward, shift, habitus, low,
        extent,
        stretch=(float(rng.uniform(0.9, 1.25)), float(rng.uniform(0.84, 1.08))),
        noise=(float(rng.uniform(8, 17)), float(rng.uniform(1.4, 3.2))),
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- rendering


def _interpolate(lattice: Floats, axis: int, at: NDArray[np.float64], step: float) -> Floats:
    """Cubic B-spline interpolation of a white lattice along one axis at positions `at` (mm), at unit variance.

    Four taps summed in a fixed order, not a matrix product: BLAS may sum otherwise from one machine to the next.
    """
    t = np.clip((at + REACH) / step, 0, 2 * REACH / step - 1e-6)
    cell = t.astype(int)
    u = t - cell
    basis = ((1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, -3 * u**3 + 3 * u**2 + 3 * u + 1, u**3)
    norm = np.sqrt(sum(b**2 for b in basis))
    shape = [-1 if i == axis else 1 for i in range(3)]
    out = np.float32(0)
    for k, b in enumerate(basis):
        out = out + np.take(lattice, cell + k, axis) * (b / norm).astype(np.float32).reshape(shape)
    return np.asarray(out)


def _lattices(seed: int, index: int) -> dict[str, Floats]:
    """The subject's white lattices, of a fixed size in mm, which `_Canvas` interpolates on the grid it is given."""
    rng = _rng(seed, index, 1)
    shapes = {name: tuple(int(2 * REACH / s) + 4 for s in steps) for name, steps in FIELDS.items()}
    return {name: np.clip(rng.standard_normal(shape, np.float32), -2.5, 2.5) for name, shape in shapes.items()}


def _polyline(tube: Tube) -> NDArray[np.float64]:
    """(n, 4) points of the Catmull-Rom curve through the tube's points."""
    p = np.array(tube.path)
    if len(p) == 2:
        return p
    a, b, c, d = (np.vstack((2 * p[0] - p[1], p, 2 * p[-1] - p[-2]))[i : i + len(p) - 1] for i in range(4))
    t = np.linspace(0, 1, 3, endpoint=False)[:, None, None]
    curve = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * (b - c) + d - a) * t**3)
    return np.vstack((curve.transpose(1, 0, 2).reshape(-1, 4), p[-1:]))


def _primitives(parts: tuple[Part, ...]) -> list[tuple[NDArray[np.float64], NDArray[np.float64], float]]:
    """Ellipsoids as (centre, 3x3 world -> unit axes scaled by radii, largest radius); tube segments as (a, b, 0)."""
    out: list[tuple[NDArray[np.float64], NDArray[np.float64], float]] = []
    for part in parts:
        if isinstance(part, Blob):
            out.append((np.array(part.at), _rotation(part.turn) / np.array(part.radii), max(part.radii)))
        else:
            curve = _polyline(part)
            out.extend((a, b, 0.0) for a, b in pairwise(curve))
    return out


class _Canvas:
    """A slab of the scan: template coordinates, HU and labels of its voxels, and the means to paint on them."""

    def __init__(self, plan: _Plan, lattices: dict[str, Floats], axes: tuple[NDArray[np.float64], ...]) -> None:
        self.plan, self.axes = plan, axes  # world positions (mm) along D, H, W
        self.field: dict[str, Floats] = {}
        for name, lattice in lattices.items():
            for i, (at, step) in enumerate(zip(axes, FIELDS[name], strict=True)):
                lattice = _interpolate(lattice, i, at, step)
            self.field[name] = lattice
        z, x, y = (a.astype(np.float32) for a in np.meshgrid(*axes, indexing="ij", sparse=True))
        inverse = np.linalg.inv(plan.forward).astype(np.float32)
        x, y = x - np.float32(plan.shift[0]), y - np.float32(plan.shift[1])
        here = [row[0] * x + row[1] * y + row[2] * z for row in inverse]
        bend = here[2] / 130 + plan.habitus["bend at"]
        moves = [4.0 * self.field.pop(f"sway {axis}") + 1.7 * self.field.pop(f"bulge {axis}") for axis in "xyz"]
        moves[0] += plan.habitus["bend x"] * np.sin(bend)
        moves[1] += plan.habitus["bend y"] * np.cos(bend)
        self.margin = np.array([np.abs(m).max() for m in moves])
        self.x, self.y, self.z = (a + m for a, m in zip(here, moves, strict=True))
        steps = [axis[1] - axis[0] for axis in axes]
        self.width = float(np.prod(steps) ** (1 / 3) / np.linalg.det(plan.forward) ** (1 / 3))  # of an edge (mm)
        self.hu = np.full(self.x.shape, -1000, np.float32)
        self.labels = np.zeros(self.x.shape, np.uint8)
        self.whole: Box = (slice(None), slice(None), slice(None))

    def box(self, low: NDArray[np.float64], high: NDArray[np.float64]) -> Box | None:
        """The voxels that can lie between two template corners; None where there are none."""
        sides = np.stack((low - self.margin, high + self.margin))
        corners = np.array([[sides[i, 0], sides[j, 1], sides[k, 2]] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
        world = (corners @ self.plan.forward.T + self.plan.shift)[:, [2, 0, 1]]
        start = [int(np.searchsorted(axis, v)) for axis, v in zip(self.axes, world.min(0), strict=True)]
        stop = [int(np.searchsorted(axis, v, "right")) for axis, v in zip(self.axes, world.max(0), strict=True)]
        if any(b <= a for a, b in zip(start, stop, strict=True)):
            return None
        return slice(start[0], stop[0]), slice(start[1], stop[1]), slice(start[2], stop[2])

    def distance(self, parts: tuple[Part, ...], reach: float, within: Box | None = None) -> tuple[Box, Floats] | None:
        """Signed distance (mm) to the union of parts, up to `reach` outside (99 beyond), and the box it is given in."""
        found = []
        for a, b, radius in _primitives(parts):
            pad = reach + (radius if radius else max(a[3], b[3]))
            ends = (a[:3], a[:3]) if radius else (np.minimum(a, b)[:3], np.maximum(a, b)[:3])
            box = self.box(ends[0] - pad, ends[1] + pad)
            if box is not None and within is not None:
                d, h, w = (slice(max(s.start, t.start), min(s.stop, t.stop)) for s, t in zip(box, within, strict=True))
                box = d, h, w
            if box is not None and all(s.stop > s.start for s in box):
                found.append((box, a, b, radius))
        if not found:
            return None
        d0, h0, w0 = (s.start for s in within) if within else (min(f[0][i].start for f in found) for i in range(3))
        d1, h1, w1 = (s.stop for s in within) if within else (max(f[0][i].stop for f in found) for i in range(3))
        out = np.full((d1 - d0, h1 - h0, w1 - w0), 99, np.float32)
        for box, a, b, radius in found:
            p = [c[box] - np.float32(o) for c, o in zip((self.x, self.y, self.z), a, strict=False)]
            if radius:  # an ellipsoid: |q| - 1 over the gradient's length, q in units of its radii
                q = [p[0] * m[0] + p[1] * m[1] + p[2] * m[2] for m in b.T.astype(np.float32)]
                k = np.sqrt(q[0] ** 2 + q[1] ** 2 + q[2] ** 2) + np.float32(1e-4)
                n = np.linalg.norm(b, axis=0).astype(np.float32)
                slope = np.sqrt((q[0] * n[0]) ** 2 + (q[1] * n[1]) ** 2 + (q[2] * n[2]) ** 2) + np.float32(1e-6)
                dist = k * (k - 1) / slope
            else:  # a capsule whose radius runs from one end's to the other's
                v = (b - a).astype(np.float32)
                t = np.clip((p[0] * v[0] + p[1] * v[1] + p[2] * v[2]) / max(float(v[:3] @ v[:3]), 1e-6), 0, 1)
                dist = np.sqrt(sum((c - t * v[i]) ** 2 for i, c in enumerate(p))) - (np.float32(a[3]) + t * v[3])
            at = tuple(slice(s.start - o, s.stop - o) for s, o in zip(box, (d0, h0, w0), strict=True))
            np.minimum(out[at], np.where(dist > reach, np.float32(99), dist), out=out[at])
        return (slice(d0, d1), slice(h0, h1), slice(w0, w1)), out

    def texture(self, tissue: str, box: Box) -> Floats:
        """HU of a tissue over a box, with its texture."""
        fine, coarse = TISSUES[tissue][4:]
        field = self.field["fibre"] if tissue == "muscle" else self.field["fine"]
        value = self.plan.hu[tissue] + fine * field[box] + coarse * self.field["coarse"][box]
        if tissue == "muscle":  # fat planes between the bundles: where the fibre field changes sign
            value = value - self.plan.habitus["fascia"] * np.exp(-((field[box] / 0.16) ** 2))
        return np.asarray(value, np.float32)

    def blend(self, box: Box, inside: Floats, value: Floats | float, strength: float = 1.0) -> None:
        """Lay `value` over the voxels whose signed distance `inside` is negative, with an edge one voxel wide."""
        target = self.hu[box]
        target += np.clip(0.5 - inside / self.width, 0, strength) * (value - target)

    def paint(self, organ: Organ) -> None:
        """Paint one structure, with its rim of fat, and let it claim its voxels (any structure ends an older claim)."""
        found = self.distance(organ.parts, organ.pad + self.width + 8)
        if found is None:
            return
        box, depth = found
        if organ.fill == "colon":
            depth = depth - 2.5 * self.field["coarse"][box]  # haustra
        d = np.maximum(depth, self.homes[organ.home][box])
        if organ.minus and (cut := self.distance(organ.minus, self.width, box)):
            d = np.maximum(d, -cut[1])
        if organ.pad:
            self.blend(box, d - organ.pad, self.texture("fat", box))
        self.fill(organ, box, d, depth)
        claim = self.labels[box]
        claim[d < 0.5 * organ.pad] = 0
        claim[d < 0] = organ.label

    def fill(self, organ: Organ, box: Box, d: Floats, depth: Floats) -> None:
        """The inside of a structure: wall, then filling. `depth` is `d` before a hilum or a cavity cut into it."""
        habitus, fine = self.plan.habitus, self.field["fine"][box]
        value = self.texture(organ.tissue, box)
        if organ.fill == "lobulated":  # clefts of fat between the lobules
            value -= np.float32(1.6 * habitus["fascia"]) * np.clip(np.abs(fine) - 1, 0, 1)
        self.blend(box, d, value)
        if organ.fill == "kidney":  # pyramids under a cortex of 7 mm, parted by columns of cortex
            pyramids = np.maximum(depth + 7, -6 * (self.field["coarse"][box] + 0.5))
            self.blend(box, np.maximum(pyramids, d), self.texture("medulla", box))
        elif organ.fill == "bone":
            self.blend(box, d + 3, self.texture("marrow", box))
        elif organ.fill in ("hollow", "colon"):
            if organ.label == STOMACH:
                content, gas = 0.6 * habitus["content"] + 14 * fine, 1.5 * (habitus["stomach level"] - self.y[box])
            else:
                content = habitus["content"] + 10 * fine
                gas = 14 * (habitus["gas"] - self.field["broad"][box] - 0.012 * self.y[box])
            if organ.fill == "colon":  # faeces: soft, riddled with small bubbles
                content = 35 + 15 * fine - 260 * np.clip(fine - 0.5, 0, 1)
                gas = gas - 10
            lumen = d + (4 if organ.label == STOMACH else 2.5)
            self.blend(box, lumen, np.asarray(content, np.float32))
            self.blend(box, np.maximum(lumen, gas), self.plan.hu["gas"])

    def vessels(self, tree: tuple[Part, ...], mask: NDArray[np.bool_]) -> None:
        """A vessel tree, seen only inside `mask`; a branch thinner than a voxel is as faint as it is thin."""
        for part in tree:
            if isinstance(part, Tube) and (found := self.distance((part,), self.width)):
                box, d = found
                strength = min(1.0, 2 * part.path[-1][3] / self.width)
                self.blend(box, np.where(mask[box], d, 99), self.plan.hu["venous"], strength)

    def trunk(self) -> None:
        """Couch, skin, fat, muscle, lungs, ribs and the fat of the cavities; sets `homes` (signed mm) and `lung`."""
        x, y, z, whole, habitus = self.x, self.y, self.z, self.whole, self.plan.habitus
        wide = np.float32(habitus["wide"])
        envelope = [np.interp(z, TRUNK_Z, row).astype(np.float32) * wide for row in TRUNK]
        # Superellipses, by the distance along the ray; both keep their back where the spine is.
        lift = np.float32(100) * (wide - 1)

        def outside(a: Floats, b: Floats, middle: np.float32) -> Floats:
            v = y - middle
            k = ((np.abs(x) / a) ** 2.5 + (np.abs(v) / b) ** 2.5) ** np.float32(0.4) + np.float32(1e-3)
            return np.asarray(np.hypot(x, v) * (1 - 1 / k), np.float32)

        core, cage = outside(envelope[0], envelope[1], lift - 2), outside(envelope[2], envelope[3], 0.8 * lift + 6)
        fat = habitus["subcutaneous"] * np.interp(z, (-200, -40, 80, 200), (1.2, 1.1, 0.65, 0.6))
        fat = fat * (0.75 + 0.25 * np.abs(x) / 140) + habitus["breast"] * (y > 0) * np.exp(
            -(((np.abs(x) - 72) / 42) ** 2) - ((z - 115) / 42) ** 2)  # fmt: skip
        if np.isfinite(habitus["table"]):
            d, h, w = np.meshgrid(*self.axes, indexing="ij", sparse=True)
            couch = habitus["back"] - habitus["table"] + 0.0011 * h**2 - w
            self.blend(whole, np.asarray(np.abs(couch - 14) - 14 + 0 * d, np.float32), -930)
            self.blend(whole, np.asarray(np.abs(couch - 2) - 2 + 0 * d, np.float32), -60)
        skin = np.asarray(core - fat, np.float32)
        self.blend(whole, skin, self.plan.hu["skin"])
        self.blend(whole, skin + 2, self.texture("fat", whole))
        self.blend(whole, core, self.texture("muscle", whole))

        drop = 0.0065 * (np.abs(x) - 68) ** 2 + np.where(y < 10, 0.0095, 0.004) * (y - 10) ** 2
        dome = 61 + 5 * np.tanh(x / 40) + habitus["breath"] + 10 * habitus["visceral"] - drop
        above = (z - dome) * np.float32(0.75)
        self.homes = {"anywhere": core, "abdomen": np.maximum(cage, above), "chest": np.maximum(cage + 2, 3 - above)}
        for home in ("abdomen", "chest"):
            self.blend(whole, self.homes[home], self.texture("fat", whole))
        lung = np.maximum(self.homes["chest"] + 2, 17 - np.abs(x))
        self.blend(whole, lung, self.texture("lung", whole))
        self.lung = lung < 0

        # Ribs: evenly spaced, sloping down to the front, cartilage near the sternum, ending at the costal margin.
        turn = (z + 0.42 * (y + 80) + 12) / 25
        rib = np.hypot((cage - 6) * 1.1, 0.85 * 25 * (turn - np.round(turn))) - 5
        ends = np.maximum(np.abs(turn - 5.6) - 5.9, 0) * 25
        rib = np.maximum(np.maximum(rib, ends), np.maximum(0.6 * (y - 8 - 0.85 * z), (14 - np.abs(x)) * (y > 0)))
        self.blend(whole, rib, np.where(y > 42, self.texture("cartilage", whole), self.texture("cortical", whole) - 60))
        sternum = np.maximum(np.maximum(np.abs(cage - 5) - 5, np.abs(x) - 17), np.maximum(np.abs(z - 150) - 75, 10 - y))
        self.blend(whole, sternum, self.texture("cortical", whole))
        self.blend(whole, sternum + 2.5, self.texture("marrow", whole))

    def spine(self) -> None:
        """Vertebral bodies, discs, canal, arches and processes, repeated at a pitch that shrinks towards the head."""
        box = self.box(np.array([-55.0, -135, -320]), np.array([55.0, -15, 340]))
        if box is None:
            return
        x, z = self.x[box], self.z[box]
        y = self.y[box] - np.interp(z, SPINE_Z, SPINE_Y).astype(np.float32)  # from the middle of the vertebral bodies
        pitch = 33 - 0.033 * (z + 100)
        turn = -np.log(1 - 0.001 * (z + 100)) / 0.033  # the integral of 1 / pitch
        level = np.abs(turn - np.round(turn)) * pitch
        rx = 23 - 0.026 * (z + 100)
        ry = 0.74 * rx
        column = (np.hypot(x / rx, y / ry) - 1) * ry
        back = -(y + ry + 9)  # behind the middle of the canal
        ring = np.hypot(x, back)
        arch = np.maximum(np.abs(ring - 11.5) - 3.5, level - 0.34 * pitch)
        slant = np.abs(turn - 0.3 + 0.012 * back - np.round(turn - 0.3 + 0.012 * back)) * pitch
        spinous = np.maximum(np.maximum(np.abs(x) - 4, np.abs(back - 22) - 14), slant - 8)
        across = np.maximum(np.maximum(np.hypot(back - 2, level) - 6, np.abs(x) - 36), 11 - np.abs(x))
        body = np.maximum(column, level - 0.41 * pitch)
        bone = np.minimum(np.minimum(body, arch), np.minimum(spinous, across)).astype(np.float32)
        bone = np.maximum(bone, self.homes["anywhere"][box])  # under the skin of the thin
        column, ring = column.astype(np.float32), ring.astype(np.float32)
        self.blend(box, column + 1, self.texture("disc", box))
        self.blend(box, bone, self.texture("cortical", box))
        self.blend(box, bone + 2.5, self.texture("marrow", box))
        self.blend(box, ring - 8.5, self.texture("fat", box))
        self.blend(box, ring - 7, self.texture("cord", box))
        self.labels[box][(column < 0) | (bone < 0) | (ring < 11)] = 0

    def lesion(self, host: int, blob: Blob, value: float) -> None:
        """A cyst or a mass, within its host organ and part of it."""
        if found := self.distance((blob,), self.width):
            box, d = found
            self.blend(box, np.where(self.labels[box] == host, d, 99), value + 4 * self.field["fine"][box])

    def render(self) -> None:
        """Paint the whole subject, from the outside in."""
        self.trunk()
        for organ in self.plan.frame:
            self.paint(organ)
        lungs, mesentery, liver = self.plan.trees
        self.vessels(lungs, self.lung)
        self.vessels(mesentery, self.homes["abdomen"] < 0)
        for organ in (self.plan.bowel, *self.plan.organs):
            if organ.label not in self.plan.absent:
                self.paint(organ)
            if organ.label == LIVER:
                self.vessels(liver, self.labels == LIVER)
        for host, blob, value in self.plan.lesions:
            self.lesion(host, blob, value)
        self.spine()


SLAB_VOXELS = 2_000_000  # rendered at a time, so that memory stays below 1 GB at any resolution


def make_subject(seed: int, index: int, spacing_mm: float) -> PhantomSubject:
    """Make subject `index` of the cohort `seed` at a base spacing in mm.

    The actual spacing varies between subjects around the base: 0.84-1.08 times it in plane, 0.90-1.25 between slices.
    The same (seed, index) is the same anatomy at every base spacing. Raises ValueError for a negative seed or index, or
    for a spacing outside 0.5-12 mm.
    """
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index must not be negative: got {seed} and {index}")
    if not 0.5 <= spacing_mm <= 12:
        raise ValueError(f"the base spacing of a phantom must lie between 0.5 and 12 mm: got {spacing_mm}")
    plan, lattices = _plan(seed, index), _lattices(seed, index)
    step_d, step_in = (round(spacing_mm * s, 3) for s in plan.stretch)
    steps = np.array([step_in, step_in, step_d])  # x, y, z
    counts = np.maximum(np.round(plan.extent / steps).astype(int), 8)
    x, y, z = (low + step * (np.arange(n) + 0.5) for low, step, n in zip(plan.low, steps, counts, strict=True))

    hu = np.empty((len(z), len(x), len(y)), np.float32)
    labels = np.empty(hu.shape, np.uint8)
    slabs = max(1, round(hu.size / SLAB_VOXELS))
    for rows in np.array_split(np.arange(len(z)), min(slabs, len(z) // 2)):
        canvas = _Canvas(plan, lattices, (z[rows], x, y))
        canvas.render()
        hu[rows[0] : rows[-1] + 1], labels[rows[0] : rows[-1] + 1] = canvas.hu, canvas.labels

    sd, blur = plan.noise
    noise = _rng(seed, index, 2).standard_normal(hu.shape, np.float32)
    noise = gaussian_filter(noise, blur / steps[[2, 0, 1]], truncate=3)
    # Less dose reaches a smaller voxel; air attenuates nothing, so its noise is weaker.
    noise *= sd * float(np.sqrt(5 / np.mean(steps))) / noise.std()
    hu += noise * (0.5 + 0.5 * np.clip(hu / 1000 + 1, 0, 1))
    if plan.habitus["disc"]:
        hu[:, np.hypot(x[:, None] - x.mean(), y - y.mean()) > 1.06 * max(np.ptp(x), np.ptp(y)) / 2] = -1024
    affine = np.diag([*steps, 1.0])
    affine[:3, 3] = x[0], y[0], z[0]
    return PhantomSubject(
        hu=np.clip(np.rint(hu), -1024, 3071).astype(np.int16),
        labels=labels,
        spacing=(float(steps[2]), float(steps[0]), float(steps[1])),
        affine=affine,
        annotated=LABELLED,
        phase=PHASES[plan.phase],
        absent=plan.absent,
    )
