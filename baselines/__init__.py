"""The rivals, one file each, behind the contract of :mod:`nemesis.method`."""
