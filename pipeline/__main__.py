"""Command line of the pipeline: `python -m pipeline train PRESET`, and the commands for runs.

Slow modules are imported only after the settings have been checked.
"""

import sys
from collections.abc import Sequence

from pipeline.commands.comparison import Compare, ListRuns
from pipeline.commands.evaluate import Evaluate, EvaluateElsewhere
from pipeline.commands.export import Export
from pipeline.commands.jobs import JobLogs, JobStatus, JobStop
from pipeline.commands.launch import Launch
from pipeline.commands.predict import Predict
from pipeline.commands.probe import Probe, ProbeElsewhere
from pipeline.commands.runs import Report, Rollback, TrackServe, TrackSync
from pipeline.commands.train import Train, TrainElsewhere
from support.command import dispatch

COMMANDS = {
    "train": Train,
    "evaluate": Evaluate,
    "predict": Predict,
    "probe": Probe,
    "list": ListRuns,
    "compare": Compare,
    "rollback": Rollback,
    "report": Report,
    "export": Export,
    "track sync": TrackSync,
    "track serve": TrackServe,
    "launch": Launch,
    "job status": JobStatus,
    "job logs": JobLogs,
    "job stop": JobStop,
}

# the form of a command that runs on another machine, which alone may read what it names
ELSEWHERE = {Train: TrainElsewhere, Evaluate: EvaluateElsewhere, Probe: ProbeElsewhere}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; entry point of the script `vit-pipeline`."""
    return dispatch("python -m pipeline", COMMANDS, arguments)


if __name__ == "__main__":
    sys.exit(main())
