"""Section ``finetune`` of the configuration: how encoders are trained further, on labels; the same for every method."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from nemesis.section import Different, Positive, Section, key

VERSION = 3  # stage version: raised whenever fine-tuning the same network gives other numbers

Arm = Literal["pretrained", "scratch", "scratch_matched"]
Control = Literal["scratch", "scratch_matched"]
Task = Literal["presence", "segmentation"]
ARMS: dict[Arm, str] = {  # as printed
    "pretrained": "pretrained",
    "scratch": "from scratch",
    "scratch_matched": "from scratch, matched compute",
}
PROTOCOL: dict[Task, str] = {"presence": "finetune", "segmentation": "segment"}


def protocol_of(task: Task, arm: Arm) -> str:
    """What rows and predictions call a task of an arm: ``finetune``, ``finetune_scratch``, ``segment_scratch_matched``, …"""
    return PROTOCOL[task] if arm == "pretrained" else f"{PROTOCOL[task]}_{arm}"


class Finetuning(Section):
    """How encoders are fine-tuned: one recipe and one search for all methods; its folds, seed and threshold are the probe's."""

    tasks: Annotated[list[Task], Different] = key(
        ["presence", "segmentation"],
        "What for: organ presence in a superpatch (encoder and linear head), and segmentation, of methods whose network can",
        min_length=1,
    )
    steps: int = key(300, "Optimiser steps of a training", "steps", ge=1)
    batch_size: int = key(16, "Superpatches per step", "superpatches", ge=1)
    learning_rates: Annotated[list[Positive], Different] = key(
        [1e-4, 1e-3], "Peak learning rates of AdamW, each tried; the best in inner validation is taken", min_length=1
    )
    fixed_learning_rate: Positive = key(
        3e-4, "The learning rate where there are fewer than 5 training patients, for the last step; such cells are marked"
    )
    checks: int = key(
        3, "Looks at the inner validation, evenly spread over the steps; the weights of the best look are taken", "looks", ge=1
    )
    label_fractions: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Different] = key(
        [1.0], "Shares of the training patients whose labels are used; the subsets are the probe's", "(0, 1]", min_length=1
    )
    draws: int = key(1, "Repetitions of each label fraction below 1", "draws", ge=1)
    folds_held_out: int | None = key(None, "How many of the probe's folds are tested, from the first; null: all", "folds", ge=1)
    seeds: int | None = key(None, "How many of a method's seeds are fine-tuned, from the first; null: all", "seeds", ge=1)
    controls: Annotated[list[Control], Different] = key(
        [],
        "Controls of every pretrained method: `scratch`, the same network from random weights by the same recipe, and "
        "`scratch_matched`, the same for so many steps more that it has cost as much as pretraining and fine-tuning together "
        "(not of published weights: nobody says what they cost)",
    )
    warmup_fraction: float = key(0.1, "Share of the steps with linear warm-up, before a cosine to 0", "[0, 1]", ge=0, le=1)
    weight_decay: float = key(0.05, "Weight decay of AdamW", ge=0)
    clip_norm: float = key(1.0, "Gradient norm is clipped to this", gt=0)
    centred: float = key(
        0.5, "Share of the crops of segmentation whose centre is a labelled voxel; the rest is placed uniformly", "[0, 1]",
        ge=0, le=1,
    )  # fmt: skip
    overlap: float = key(0.25, "Overlap of neighbouring windows where whole scans are segmented", "[0, 1)", ge=0, lt=1)
    surface_tolerance_mm: float = key(
        2.0,
        "How far from the drawn surface of an organ a segmented one may lie to count as right, in the surface Dice; below the "
        "voxels' size only what is drawn exactly counts",
        "mm",
        ge=0,
    )
    precision: Literal["auto", "32-true", "bf16-mixed"] = key(
        "auto", "Arithmetic; auto is bf16-mixed where the device computes it, else 32-true"
    )
    threads: int = key(1, "CPU threads of a fine-tuning process (the count changes last bits)", "threads", ge=1)

    @model_validator(mode="after")
    def _checks_are_steps(self) -> Finetuning:
        if self.checks > self.steps:
            raise ValueError(f"checks must not be more than the {self.steps} steps")
        return self
