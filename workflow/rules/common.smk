"""The plan of the experiment, made once when the workflow is read; every rule takes its part from here."""

import json
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from nemesis.data.views import view_name
from nemesis.errors import NemesisError
from nemesis.experiment import plan
from nemesis.planning import priority, read_timings, wants_gpu

try:
    # the default configuration applies only when the user gave none: Snakemake's own merging cannot remove a key
    EXPERIMENT = plan(
        list(workflow.config_settings.configfiles)
        or [Path(workflow.basedir) / "config" / "config.yaml"],
        workflow.config_settings.config,
        dry_run=workflow.output_settings.dryrun,  # workflow.dryrun is known only once all is read
    )
except NemesisError as error:
    raise WorkflowError(str(error)) from None

# `.venv/bin/snakemake` finds `nemesis` beside itself, whether the environment is active or not; a prefix of one's own replaces
# Snakemake's strict mode, without which a failure before a pipe goes unseen
shell.prefix(f'set -euo pipefail; export PATH="{Path(sys.executable).parent}:$PATH"; ')

CONFIG = EXPERIMENT.config
FOLDER = str(EXPERIMENT.folder)
RUNS = EXPERIMENT.run_ids
SHARDS = EXPERIMENT.shards
VIEWS = {view_name(spacing): spacing for spacing in EXPERIMENT.views}
TIMINGS = read_timings()
GPU = int(wants_gpu(CONFIG.device))


def unless_done(rule, outputs, wildcards, file):
    """What a job of a folder that experiments share waits for: a file of this experiment, unless another left all its outputs.

    What scans and weights hold is in the job's params, so a file that is written again repeats nothing. One that is yet to be
    written would repeat the job even as ancient.
    """
    paths = [output.format(**wildcards) for output in outputs.values()]
    asked, names = workflow.dag_settings, {rule, *paths}
    forced = (
        asked.forceall
        or names & set(asked.forcerun)
        or (asked.forcetargets and (asked.target_jobs or names & set(asked.targets)))
    )
    done = not forced and all(Path(path).exists() for path in paths)
    return [] if done and not Path(file).exists() else ancient(file)


def as_json(value):
    """A specification as one shell word's content."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
