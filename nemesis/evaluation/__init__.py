"""Judging a frozen network: features, probes, reconstructions, and the statistics of what they measure."""

VERSION = 5  # raised whenever the numbers of this stage change
