"""What a search adds to the runs that it consists of.

    python -m benchmarks.tune [--trials 6] [--epochs 10] [--json FILE]

The wall time of a whole search, from its command to its answer, over the time that its trials took
in training, divided by how many ran at the same time. Training time is that of `pipeline.run.fit`:
what the same runs would take without a search around them, side by side as often. What is above 1
is the search: the start of Ray, the wait for MLflow, trials that wait for each other, the answer.
(As a module, since a script's own folder would hide the package `tune`.)
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tune.plan import read_plan
from tune.slots import Slots
from tune.study import Study

LIMIT = 1.15


def measure(trials: int, epochs: float) -> dict[str, float]:
    """Run a search of equal trials: one rung, and two pairs that confirm its answer."""
    with tempfile.TemporaryDirectory() as runs:
        command = [sys.executable, "-m", "tune", "search", "demo", "--rungs", f"{trials}/1"]
        command += ["--base.runs-dir", runs, "--base.epochs", str(epochs), "--seeds", "2"]
        command += ["--name", "overhead"]
        since = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        wall_s = time.perf_counter() - since
        plan = read_plan(Path(runs) / "overhead")
        outcomes = [trial.outcome for trial in Study.read(plan, plan.dir).trials()]
    # as on this machine, whose Ray counts each core twice
    how = {"batch": plan.batch, "trials": trials}
    at_once = Slots.of(cpus=2 * os.cpu_count(), gpus=0, **how).trials
    trained_s = sum(outcome.seconds for outcome in outcomes)
    return {
        "trials": len(outcomes),
        "at_once": at_once,
        "wall_s": round(wall_s, 1),
        "trained_s": round(trained_s, 1),
        "overhead": round(wall_s / (trained_s / at_once), 3),
        "limit": LIMIT,
    }


def main() -> int:
    """Measure, and say so; 1 if the overhead is above its limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=6, help="trials of the rung")
    parser.add_argument("--epochs", type=float, default=10.0, help="epochs of the real run")
    parser.add_argument("--json", type=Path, help="file for the result")
    arguments = parser.parse_args()
    result = measure(arguments.trials, arguments.epochs)
    result |= {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1))
    sys.stdout.write(json.dumps(result) + "\n")
    return int(result["overhead"] > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
