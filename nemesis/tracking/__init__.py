"""MLflow, a view of the files: live while a network trains (best effort), replayed in full when the experiment is done."""

VERSION = 2  # part of every digest: raise it and everything is logged again
