"""Fixtures that these tests share."""

from report_experiment import report

__all__ = ["report"]
