"""``python -m nemesis``, the same as ``nemesis``."""

from nemesis.cli import main

main()
