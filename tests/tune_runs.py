"""Runs of a search that cost nothing: their loss is a formula of settings, length and seed.

python tests/tune_runs.py RUNS_DIR [resume]    # a search of such runs, with a Ray of its own
"""

import math
import os
import random
import subprocess
import sys
import time

from ray import cloudpickle

from pipeline.checkpoint.run_folder import RunFolder
from pipeline.evaluation.config import CENTER
from pipeline.outcome import Outcome
from pipeline.settings.presets import find_preset
from pipeline.tracking.journal import RECORDS, write_record
from tune.config import SearchConfig
from tune.prepare import make_plan

# the processes of the trials cannot import a test
cloudpickle.register_pickle_by_value(sys.modules[__name__])

SAMPLES = 1437
# where the loss is lowest at the length of the real run, and how that moves with the length
LR, WARMUP, LR_SLOPE, WARMUP_SLOPE = 3e-3, 0.05, -0.4, -0.25
CHANCE = math.log(10)
SMALL = {"rungs": ["5/8", "2/4"], "seeds": 2}
SMALL_TRIALS = 5 + 2 + 4


def optimum(horizon):
    """The best learning rate and warm-up at a length."""
    return LR * horizon**LR_SLOPE, WARMUP * horizon**WARMUP_SLOPE


def loss_of(rate, warmup, horizon, seed):
    """The loss at the end: a paraboloid, a level of the seed, and a little noise."""
    best_rate, best_warmup = optimum(horizon)
    far = 0.05 * math.log(rate / best_rate) ** 2 + 0.02 * math.log(warmup / best_warmup) ** 2
    noise = random.Random(f"{rate} {warmup} {horizon} {seed}").gauss(0, 0.001)
    level = random.Random(seed).gauss(0, 0.05)
    return 0.3 * horizon**-0.1 + far + level + noise


def fit(config, *, on_record, trial):
    """A run that costs nothing; a rate far too high does not end well."""
    folder = RunFolder.of(config.runs_dir, config.name).path
    folder.mkdir(parents=True, exist_ok=True)
    steps = config.steps(SAMPLES)
    horizon = config.epochs / find_preset("demo").epochs
    loss = loss_of(config.optim.lr, config.optim.warmup, horizon, config.seed)
    for step in range(1, 6):
        now = 50.0 if config.optim.lr > 0.05 else loss + 1.9 * (1 - step / 5)
        record = {"kind": "train", "step": steps * step // 5, "train/loss": now}
        write_record(folder, record)
        RunFolder.of(config.runs_dir, config.name).push(RECORDS)
        if on_record(record):
            return None
        time.sleep(0.02)
    values = {"loss": loss, "top1": 1 - loss / CHANCE}
    record = {"kind": "eval", "step": steps, **{f"val/{k}": v for k, v in values.items()}}
    write_record(folder, record)
    on_record(record)
    return Outcome(steps=steps, images_per_s=1.0, checkpoint="", protocols={CENTER: values})


def plan_in(folder, changes=None, **settings):
    """A plan of a search of the demo in a folder."""
    base = find_preset("demo").replace({"runs_dir": str(folder), **(changes or {})})
    settings = {"rungs": ["16/16", "5/4", "3/2"], "seeds": 3, **settings}
    return make_plan("demo", base, SearchConfig().replace(settings))


def start(runs, *more, **env):
    """Start a small search in a process of its own."""
    return subprocess.Popen(
        [sys.executable, __file__, str(runs), *more],
        env={**os.environ, "PYTHONPATH": ":".join(sys.path), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def main():
    from tune.__main__ import ENVIRONMENT

    os.environ |= {**ENVIRONMENT, "RAY_AUTH_MODE": "disabled"}
    from tune.search import run_search

    plan = plan_in(sys.argv[1], **SMALL)
    answer = run_search(plan, resume="resume" in sys.argv, fit=fit)
    sys.stdout.write(" ".join(answer.sentences()) + "\n")


if __name__ == "__main__":
    main()
