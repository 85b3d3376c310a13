"""One small finished run, made once and copied by every test that goes on from it."""

import shutil

import pytest
from filelock import FileLock
from places import Place, copy_sources


@pytest.fixture(scope="session")
def finished(tmp_path_factory, worker_id):
    """A place with a finished run; not to be changed. Shared between the workers of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "finished"
    with FileLock(f"{folder}.lock"):
        place = Place(folder)
        if not (folder / "output.txt").exists():
            assert not folder.exists(), f"the shared run failed in another worker: see {folder}"
            copy_sources(folder)
            place.write_config()
            done = place.snakemake()
            assert done.rc == 0, done.text
            (folder / "output.txt").write_text(done.text)
    return place


@pytest.fixture(scope="session")
def worker_id(request):
    return getattr(request.config, "workerinput", {}).get("workerid", "master")


@pytest.fixture
def place(finished, tmp_path):
    """A copy of the finished run, to be changed at will."""
    # MLflow's data base holds the absolute path of its files: the copy starts one of its own
    shutil.copytree(finished.folder, tmp_path / "place", ignore=shutil.ignore_patterns("mlflow.db", "mlartifacts"))
    return Place(tmp_path / "place")


@pytest.fixture
def fresh(tmp_path):
    """The sources alone, nothing computed."""
    copy_sources(tmp_path / "place")
    place = Place(tmp_path / "place")
    place.write_config()
    return place
