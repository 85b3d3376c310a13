"""Judging a frozen network: features, probes, reconstructions, and the statistics of what they measure."""

VERSION = 5  # raised whenever the numbers of this stage change

# What nemesis.evaluation.peeking measures goes by these names and into a table of its own, never into another. The second stands
# in predictions alone; its rows are the first's, with the selection OPTIMISTIC.
RELEASED_HEAD, RELEASED_HEAD_PEEKED = "linear_official", "linear_official_test"
OPTIMISTIC = "test (optimistic)"
