"""Settings of all tests: one thread per process (the runs are parallel), no verdict on timings."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from hypothesis import settings

settings.register_profile("nemesis", deadline=None, print_blob=True)
settings.load_profile("nemesis")
