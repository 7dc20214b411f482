"""Takes a run back to an earlier checkpoint, so that it can go on differently from there.

records after the step -> void      checkpoints after it -> deleted, the newest first
"""

import logging

from pipeline.checkpoint.local import Checkpoint
from pipeline.checkpoint.run_folder import LOCK, RunFolder
from pipeline.evaluation.config import RESULT
from pipeline.tracking import journal
from support.files import locked
from support.lease import leased

log = logging.getLogger(__name__)


def roll_back(location: str, step: int) -> Checkpoint:
    """Make the checkpoint of a step the newest of a run; returns it.

    Args:
        location: Folder or URI of the run.
        step: Step of one of its checkpoints.

    Raises FileNotFoundError if there is no such run, ValueError if it has no such checkpoint, and
    AlreadyLocked if a driver has it.
    """
    run = RunFolder.at(location)
    if not run.checkpoints.all():
        raise FileNotFoundError(f"{run.location} has no checkpoints; give RUNS_DIR/NAME")
    run.path.mkdir(parents=True, exist_ok=True)
    message = f"a process trains the run in {run.location}; stop it first"
    with locked(run.path / LOCK, message), leased(run):
        found = {checkpoint.step: checkpoint for checkpoint in run.checkpoints.all()}
        if step not in found:
            steps = ", ".join(f"{number:,}" for number in found)
            raise ValueError(
                f"run {run.location} has no checkpoint of step {step:,}; it has: {steps}"
            )
        run.pull()
        # if this is cut short, the same command finishes it
        journal.rewind(run.path, step)
        run.push(journal.RECORDS)
        run.remove(RESULT)
        for number in sorted(found, reverse=True):
            if number > step:
                run.checkpoints.delete(found[number])
                log.info("deleted   checkpoint of step %s", f"{number:,}")
    return found[step]
