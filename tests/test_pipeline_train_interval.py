"""What a record says of the steps since the last one, and of the worker that waits the longest."""

import time

import step_ranks
import torch.distributed as dist
from processes import run_ranks

from pipeline.train.control import Control
from pipeline.train.interval import Interval
from pipeline.train.meter import Meter
from pipeline.train.outcomes import Outcomes


def test_a_record_has_mean_and_extremes_of_its_steps():
    interval = Interval()
    for loss, norm in ((2.0, 1.0), (9.0, 40.0), (1.0, 1.0)):
        interval.add(loss, norm)
    assert interval.values() == {
        **{"train/loss": 4.0, "train/loss_min": 1.0, "train/loss_max": 9.0},
        **{"grad_norm": 14.0, "grad_norm_max": 40.0},
    }


def test_an_interval_has_each_step_that_was_read_and_no_skipped_one(alone):
    state = step_ranks.make(step_ranks.config())
    outcomes = Outcomes(step_ranks.job(), state, None, Control(None, lambda: False, 1e9), 1)
    sums = [step_ranks.step(state, number) for number in range(4)]
    for number, each in enumerate(sums):
        outcomes.add(number + 1, each, [], skips=number == 2)
    outcomes.read(but=1)
    (norm, loss, *_), (next_norm, next_loss, *_) = (each.tolist() for each in sums[:2])
    assert state.interval == Interval(losses=[loss, next_loss], norms=[norm, next_norm])
    outcomes.read()
    assert state.interval.losses == [loss, next_loss, sums[3][1].item()]


def slow_data(rank, meet):
    """The second of two workers waits for its data, and the first for the second."""
    step_ranks.join(rank, 2, meet)
    meter = Meter(step_ranks.config(), 20, 2)

    def data():
        for number in range(10):
            time.sleep(0.05 * rank)
            yield number

    for _ in meter.timed(data()):
        dist.barrier()  # stands for the reduction of a step
    rates = meter.rates(10, step_ranks.CPU)
    assert rates["wait"] > 0.5, rates
    assert rates["memory_gib"] > 0.01 and rates["stall"] == 0 and rates["eta_s"] > 0
    dist.barrier()
    dist.destroy_process_group()


def test_the_wait_for_data_is_that_of_the_slowest_worker(tmp_path):
    run_ranks(slow_data, str(tmp_path / "meet"), count=2)
