"""Pretraining: the loop, its schedule, its resumable state."""

VERSION = 1  # stage version: raised whenever the same specification gives other weights
