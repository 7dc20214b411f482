"""How long a worker waits until its records are kept, while 512 workers send telemetry.

    python benchmarks/records.py

The queue, the driver's loop, the recorder and the folder are real. Two processes play 64 nodes of 8
workers: a heartbeat of each worker and a sample of each node every 10 s, and a record of rank 0
twice a second, ten times as often as usual. Rank 0 asks at random moments for its records to be
kept, as before a checkpoint. Then the start of a recorder is timed on records of machines of two
lengths.
"""

import argparse
import heapq
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import ray

from pipeline.reports import Reports
from pipeline.tracking import journal, recorder
from pipeline.train.report_queue import (
    Heartbeat,
    run_report_queue,
    wait_until_flushed,
)

NODES, GPUS, EVERY_S, RECORD_S = 64, 8, 10.0, 0.5
WORLD = NODES * GPUS
GPU_NAMES = ("utilization_percentage", "memory_usage_megabytes", "memory_usage_percentage", "watts")
TRAIN = {"train/loss": 1.0, "lr": 1e-3, "images_per_s": 1e4, "wait": 0.0, "memory_gib": 1.0}


@ray.remote(num_cpus=0)
class Workers:
    """Sends what the workers of some nodes send."""

    def run(self, queue: ray.actor.ActorHandle, nodes: range, seconds: float) -> int:
        """Send for some seconds; returns the number of messages."""
        end, count = time.monotonic() + seconds, 0
        ranks = range(nodes.start * GPUS, nodes.stop * GPUS)
        calls = [(queue.beat, (heartbeat(rank),)) for rank in ranks]
        calls += [(queue.sample, (f"node-{node}", node_sample(node))) for node in nodes]
        due = [(time.monotonic() + random.random() * EVERY_S, n) for n in range(len(calls))]
        heapq.heapify(due)
        while due[0][0] < end:
            at, number = heapq.heappop(due)
            time.sleep(max(0.0, at - time.monotonic()))
            method, arguments = calls[number]
            method.remote(*arguments)
            heapq.heappush(due, (at + EVERY_S, number))
            count += 1
        return count


def heartbeat(rank: int) -> Heartbeat:
    """A heartbeat of a rank."""
    where = {"node": f"gpu-{rank // GPUS}", "step": 1204, "phase": "forward", "stalled_s": 0.0}
    return Heartbeat(rank=rank, world_size=WORLD, **where)


def node_sample(node: int) -> dict[str, float]:
    """What one node sends: itself and its GPUs."""
    names = [f"system/node_{node}/value_{number}" for number in range(6)]
    ranks = range(node * GPUS, (node + 1) * GPUS)
    names += [f"system/gpu_{rank}_{name}" for rank in ranks for name in GPU_NAMES]
    return dict.fromkeys(names, 12_345.678)


def wait_times(folder: Path, seconds: float) -> tuple[list[float], float, int]:
    """Seconds of each wait of rank 0, messages per second, and lines of both files."""
    run = open_recorder(folder)
    reports, waits, step = Reports(run, 10**9, None), [], 0
    with run_report_queue(reports, lambda: None, sample_every_s=EVERY_S) as queue:
        processes = [Workers.remote() for _ in range(2)]
        halves = (range(NODES // 2), range(NODES // 2, NODES))
        sent = [
            process.run.remote(queue, half, seconds)
            for process, half in zip(processes, halves, strict=True)
        ]
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for _ in range(random.randint(1, 6)):
                step += 1
                times = {"kind": "train", "step": step, "epoch": 0.0, "eta_s": 0.0}
                queue.put.remote({**times, **TRAIN})
                time.sleep(RECORD_S * random.random() * 2)
            begin = time.perf_counter()
            wait_until_flushed(queue)
            waits.append(time.perf_counter() - begin)
        count = sum(ray.get(sent))
    lines = sum(1 for name in (journal.RECORDS, journal.SAMPLES) for _ in (folder / name).open())
    return waits, (count + step) / seconds, lines


def open_recorder(folder: Path) -> recorder.Recorder:
    """A recorder that sends nothing to MLflow."""
    folder.mkdir(parents=True, exist_ok=True)
    recorder.MlflowSync = lambda *_: None
    return recorder.Recorder(folder, name="x", experiment="x", settings={})


def start_s(folder: Path, samples: int) -> float:
    """Median seconds of a start on 20,000 records and a number of samples of the machines."""
    folder.mkdir()
    records = ({"kind": "train", "step": n, "time": 1.0, **TRAIN} for n in range(20_000))
    (folder / journal.RECORDS).write_text("".join(json.dumps(each) + "\n" for each in records))
    sample = node_sample(0)
    with (folder / journal.SAMPLES).open("w") as file:
        for number in range(samples):
            file.write(json.dumps({"kind": "system", "step": number, "time": 1.0, **sample}) + "\n")
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        open_recorder(folder)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="duration of the first part")
    seconds = parser.parse_args().seconds
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as place:
        waits, rate, lines = wait_times(Path(place) / "run", seconds)
        sys.stdout.write(
            f"{WORLD} workers on {NODES} nodes, {rate:.0f} messages/s, {lines} lines: "
            f"{len(waits)} waits, median {statistics.median(waits):.3f} s, "
            f"longest {max(waits):.3f} s\n"
        )
        for samples in (100, 50_000):
            found = start_s(Path(place) / f"samples-{samples}", samples)
            sys.stdout.write(f"start with {samples:>6,} samples of machines: {found:.3f} s\n")
    ray.shutdown()


if __name__ == "__main__":
    main()
