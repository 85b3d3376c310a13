"""A training that is killed at a random step goes on with the same bits when the same command is given again."""

import random
import re
import time

import pytest
from places import kill, trainer_of

pytestmark = pytest.mark.workflow


def bytes_of(place, run):
    """Everything that an interruption must not change: the run's weights and curve, and every printed table but that of cost,
    which has clocks."""
    files = [run / name for name in ("checkpoint.safetensors", "curve.jsonl", "run.json")]
    files += sorted(file for file in (place.results / "tiny" / "tables").iterdir() if file.stem != "cost")
    assert len(files) > 4
    return {file.name: file.read_bytes() for file in files}


@pytest.mark.parametrize("cores", [1, 2])
def test_a_killed_training_goes_on_and_ends_with_the_same_bytes(place, cores):
    undisturbed = bytes_of(place, place.run_folder("nemesis"))
    run = place.forget_training("nemesis")
    saves = random.SystemRandom().randint(1, 4)
    running = place.start("--cores", str(cores), "print_tables")
    trainer = trainer_of(place, running)
    wait_for_saves(run / "state.pt", saves, running)
    time.sleep(random.SystemRandom().uniform(0.0, 0.2))
    kill(trainer)
    said = running.communicate()[0]
    assert running.returncode != 0, said
    assert "Error in rule pretrain_method" in said and f"logs/pretrain_method/{run.name}.log" in said
    assert (run / "state.pt").exists() and not (run / "checkpoint.safetensors").exists()

    done = place.snakemake("print_tables", cores=cores)
    assert done.rc == 0, done.text
    step = re.search(r"resumed at step (\d+)", done.text)
    assert step and int(step.group(1)) >= 10 * saves
    assert bytes_of(place, run) == undisturbed
    assert not (run / "state.pt").exists()


def wait_for_saves(path, count, running, timeout=60.0):
    """Return as soon as the state has been saved so many times."""
    until, last = time.monotonic() + timeout, None
    while count:
        assert running.poll() is None and time.monotonic() < until, running.communicate()[0]
        now = path.stat().st_mtime_ns if path.exists() else None
        if now != last:
            last, count = now, count - 1
        time.sleep(0.005)


def test_a_killed_snakemake_leaves_a_lock_and_says_how_to_remove_it(place):
    place.forget_training("nemesis")
    running = place.start("--cores", "1")
    trainer = trainer_of(place, running)
    kill(running.pid)
    kill(trainer)
    running.communicate()

    again = place.snakemake()
    assert again.rc != 0 and "--unlock" in again.text
    assert place.snakemake("--unlock").rc == 0
    assert place.plan().jobs["pretrain_method"] == 1
