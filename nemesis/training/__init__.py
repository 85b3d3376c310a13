"""Pretraining: the loop, its schedule, its resumable state."""

VERSION = 3  # stage version: raised whenever the same specification gives other weights
