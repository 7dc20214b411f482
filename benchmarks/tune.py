"""What a search adds to the runs that it consists of.

    python -m benchmarks.tune [--trials 6] [--epochs 40] [--json FILE]

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

from tune.trial_log import TRIALS, read_entries
from tune.trial_slots import TrialSlots

LIMIT = 1.15


def measure(trials: int, epochs: float) -> dict[str, float]:
    """Run a search of equal trials, none of them stopped."""
    at_once = TrialSlots.of(cpus=2 * os.cpu_count(), gpus=0, workers=1, wanted=None).trials
    with tempfile.TemporaryDirectory() as runs:
        command = [sys.executable, "-m", "tune", "search", "demo", "--trials", str(trials)]
        command += ["--base.runs-dir", runs, "--base.epochs", str(epochs), "--seeds", "1"]
        command += ["--concurrent", str(at_once)]
        command += ["--stopper", "none", "--sampler", "random", "--name", "overhead"]
        since = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        wall_s = time.perf_counter() - since
        entries = read_entries(Path(runs) / "overhead" / TRIALS)
    trained_s = sum(entry.seconds for entry in entries)
    return {
        "trials": len(entries),
        "at_once": at_once,
        "wall_s": round(wall_s, 1),
        "trained_s": round(trained_s, 1),
        "overhead": round(wall_s / (trained_s / at_once), 3),
        "limit": LIMIT,
    }


def main() -> int:
    """Measure, and say so; 1 if the overhead is above its limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=6, help="trials of the search")
    parser.add_argument("--epochs", type=float, default=40.0, help="epochs of the real run")
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
