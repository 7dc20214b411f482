"""What the training loop adds around the bare step, and how long checkpoints hold it up.

    python -m benchmarks.loop [--rounds 3] [--size S/32]

bare: the worker's step (`pipeline.train.step.take_step`) on one batch that lies on the device.
loop: the same model, batch size and device through pipeline.run, with Ray, the stream, the record
and checkpoints.
The two run in turn, each in a process of its own with the same number of threads; the ratio is the
median of the ratios within a round.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.train_step import joined, random_batch
from pipeline.data.digits import made
from pipeline.data.order import RankShare
from pipeline.run import fit
from pipeline.settings.config import DIGITS, DataConfig, TrainConfig
from pipeline.train.state import State
from pipeline.train.step import take_step
from vit.config import OptimConfig, ViTConfig

CLASSES = 10


def config_of(size: str, batch: int, steps: int, runs: Path, digits: Path) -> TrainConfig:
    """The run that is measured, on the embedded digits brought to the model's size."""
    cuda = torch.cuda.is_available()
    return TrainConfig(
        name="loop",
        runs_dir=str(runs),
        data=DataConfig(dir=str(digits), slice_samples=8, allow_upsampling=True),
        model=ViTConfig.named(size, num_classes=CLASSES),
        optim=OptimConfig(warmup=0.1),
        epochs=steps * batch / 1437,
        global_batch=batch,
        micro_batch=batch,
        worker_cpus=1,
        precision="bf16" if cuda else "fp32",
        compile=cuda,
        log_every=steps // 4,
        eval_every=10**9,
        checkpoint_every=steps // 4,
        crops="center",
    )


def bare(config: TrainConfig, steps: int) -> float:
    """Images per second of the step alone, after a quarter of warm-up."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    count = config.global_batch
    batch, share = random_batch(config.model, count, device), RankShare.of(0, 1, count)
    with joined("nccl" if device.type == "cuda" else "gloo"):
        state = State(config, device, None, 1)
        for step in range(steps):
            if step == steps // 4:
                begin = time.perf_counter()
            sums = take_step(state, batch, share, 1, (0.0, 0.0, 0.0), lambda phase: None)
        sums.tolist()  # waits for the device
        return (steps - steps // 4) * count / (time.perf_counter() - begin)


def loop(config: TrainConfig) -> dict[str, float]:
    """Images per second, wait and stall of the loop, after a quarter of warm-up."""
    fit(config)
    lines = (Path(config.runs_dir) / config.name / "metrics.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if record.get("kind") == "train"][1:]
    names = ("images_per_s", "wait", "stall")
    return {name: statistics.mean(record[name] for record in records) for name in names}


def child(mode: str, options: argparse.Namespace, digits: Path) -> dict[str, float]:
    """One measurement in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.loop", "--mode", mode, "--digits", str(digits)]
    for name in ("size", "batch", "steps"):
        command += [f"--{name}", str(getattr(options, name))]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(output.splitlines()[-1])


def main() -> None:
    """Measure in turn and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="S/32")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mode", choices=("bare", "loop"), help=argparse.SUPPRESS)
    parser.add_argument("--digits", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if options.mode:
            config = config_of(
                options.size, options.batch, options.steps, Path(name), options.digits
            )
            found = (
                loop(config)
                if options.mode == "loop"
                else {"images_per_s": bare(config, options.steps)}
            )
            sys.stdout.write(json.dumps(found) + "\n")
            return
        digits = Path(made(DIGITS, name))
        rounds = [
            {mode: child(mode, options, digits) for mode in ("bare", "loop")}
            for _ in range(options.rounds)
        ]
    for mode in ("bare", "loop"):
        images = statistics.median(found[mode]["images_per_s"] for found in rounds)
        sys.stdout.write(f"{mode}  {images:,.1f} images/s\n")
    ratios = [f["loop"]["images_per_s"] / f["bare"]["images_per_s"] for f in rounds]
    sys.stdout.write(f"loop over bare          {statistics.median(ratios):.3f}\n")
    for name in ("wait", "stall"):
        share = statistics.median(found["loop"][name] for found in rounds)
        sys.stdout.write(f"{name + ', share of time':<24}{share:.2%}\n")


if __name__ == "__main__":
    main()
