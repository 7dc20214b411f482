"""Samples and stopping: the search itself, on objectives whose optimum is known."""

import math
import resource
import subprocess
import sys
from types import SimpleNamespace

import pytest
from ray.tune.schedulers import ASHAScheduler, TrialScheduler
from test_tune_space import plan_of

from tune.config import SearchConfig
from tune.sampler import importances, propose, spread_point
from tune.stopper import RUNG, make_stopper, rung_of
from tune.trial_log import DIVERGED, DONE, STARTED, STOPPED, Entry

EVALS = 12


def value(sample):
    """A hill around lr 2.2e-3 and warm-up 0.12, in the logarithm of both."""
    rate, warmup = math.log(sample["optim.lr"] / 2.2e-3), math.log(sample["optim.warmup"] / 0.12)
    return 0.9 - 0.1 * rate**2 - 0.01 * warmup**2


def entry_of(number, sample, status=DONE, top1=None):
    reached = value(sample) if top1 is None else top1
    values = {"val/top1": reached, "val/loss": 1 - reached} if status != STARTED else {}
    return Entry(number=number, sample=sample, settings=sample, status=status, values=values)


def search(job, trials):
    entries = [entry_of(0, job.baseline_sample())]
    for number in range(1, trials):
        sample = propose(number, job.space, entries, job.config)
        entries.append(entry_of(number, sample))
    return entries


def test_points_at_random_are_even_in_any_number():
    for count in (8, 11, 32):
        points = [spread_point(number, 2, seed=3) for number in range(count)]
        for axis in (0, 1):
            halves = sum(point[axis] < 0.5 for point in points)
            assert abs(halves - count / 2) <= 2
    assert spread_point(5, 2, 0) != spread_point(5, 2, 1)


def test_tpe_gets_closer_to_the_optimum_than_random_samples():
    best = {}
    for sampler in ("random", "tpe"):
        plans = [plan_of(sampler=sampler, trials=32, seed=seed) for seed in range(5)]
        best[sampler] = sum(max(value(e.sample) for e in search(job, 32)[1:]) for job in plans)
    assert best["tpe"] > best["random"]
    assert best["tpe"] / 5 > 0.895


def test_a_sample_follows_from_the_record_alone():
    job = plan_of(trials=12)
    whole = search(job, 12)
    again = [propose(n, job.space, whole[:n], job.config) for n in range(1, 12)]
    assert again == [entry.sample for entry in whole[1:]]
    assert len({tuple(entry.sample.values()) for entry in whole}) == 12


def test_trials_that_diverged_or_were_stopped_push_the_search_away():
    job = plan_of(trials=12, set=("optim.lr=loguniform(1e-4,1)",))
    entries = [entry_of(0, job.baseline_sample())]
    for number in range(1, 12):
        sample = propose(number, job.space, entries, job.config)
        status = DIVERGED if sample["optim.lr"] > 0.03 else DONE
        if status == DONE and value(sample) < 0.5:
            status = STOPPED
        entries.append(entry_of(number, sample, status))
    later = [propose(n, job.space, entries, job.config) for n in range(12, 24)]
    assert sum(sample["optim.lr"] > 0.03 for sample in later) <= 2


def test_grid_covers_every_point_once():
    job = plan_of(sampler="grid", trials=10)
    entries = search(job, 10)
    assert [entry.sample for entry in entries[1:]] == job.space.grid(9)


def test_several_objectives_are_searched_for_what_no_other_beats():
    config = {"objective": ("val/top1", "images_per_s"), "stopper": "none", "trials": 16}
    job = plan_of(**config)
    entries = []
    for number in range(1, 16):
        sample = propose(number, job.space, entries, job.config)
        entry = entry_of(number, sample)
        speed = {"images_per_s": 1 / sample["optim.warmup"]}
        entries.append(Entry(**{**vars(entry), "values": {**entry.values, **speed}}))
    assert len({e.sample["optim.warmup"] for e in entries}) == 15
    with pytest.raises(ValueError, match="--stopper none"):
        SearchConfig(objective=("val/top1", "val/loss"))


def test_importance_names_the_setting_that_matters():
    job = plan_of(sampler="random", trials=32)
    shares = importances(job.space, search(job, 32), job.config)
    assert shares["optim.lr"] > 0.8
    assert sum(shares.values()) == pytest.approx(1)
    assert importances(job.space, search(job, 3), job.config) is None


class Controller:
    """As much of Tune's controller as the schedulers look at."""

    def get_live_trials(self):
        return []


class Trial:
    """As much of a trial as Ray Tune's schedulers look at."""

    def __init__(self, number):
        self.trial_id, self.status = str(number), "RUNNING"
        self.config, self.stub = {"task": SimpleNamespace(judged=True)}, False

    def is_finished(self):
        return self.status == "TERMINATED"


def late_bloomer(sample):
    """The longest warm-up is best, and shows it last; a rate too high is worse at once."""
    off = math.log(sample["optim.lr"] / 2e-3)
    return 0.6 + 0.3 * math.log(sample["optim.warmup"] / 0.02) / math.log(24) - 0.05 * off**2


def learnt(sample, share):
    """The area under the learning rate so far, which is what a warm-up holds back."""
    warmup = sample["optim.warmup"]
    return share**2 / (2 * warmup) if share < warmup else share - warmup / 2


def raced(scheduler, samples, rung):
    """Numbers of the trials that a stopper lets run to their end, side by side."""
    scheduler.set_search_properties("val/top1", "max")
    trials = {number: Trial(number) for number in range(len(samples))}
    for trial in trials.values():
        scheduler.on_trial_add(None, trial)
    for step in range(1, EVALS + 1):
        share = step / EVALS
        for number, trial in list(trials.items()):
            reached = late_bloomer(samples[number]) * (
                1 - math.exp(-4 * learnt(samples[number], share))
            )
            result = {"val/top1": reached, RUNG: rung(share, samples[number]["optim.warmup"])}
            result["training_iteration"] = step
            if scheduler.on_trial_result(Controller(), trial, result) == TrialScheduler.STOP:
                del trials[number]
    return sorted(trials)


# evenly over the space, the longest warm-ups last: the others are at each rung before them
RACERS = [
    {"optim.lr": 2e-3 * (1 if i % 2 else 5), "optim.warmup": 0.02 * 24 ** (i / 15)}
    for i in range(16)
]


def test_the_search_as_shipped_keeps_a_long_warmup_that_plain_asha_loses():
    config = SearchConfig()

    def shipped(share, warmup):
        return rung_of(config, share=share, warmup=warmup, longest=0.48)

    best = max(range(16), key=lambda number: late_bloomer(RACERS[number]))
    left = raced(make_stopper(config), RACERS, shipped)
    assert best in left and len(left) < 16
    plain = ASHAScheduler(time_attr=RUNG, grace_period=1, max_t=EVALS + 1, reduction_factor=2)
    assert best not in raced(plain, RACERS, lambda share, _: round(share * EVALS))


def test_the_median_rule_keeps_it_too():
    config = SearchConfig(stopper="median")

    def shipped(share, warmup):
        return rung_of(config, share=share, warmup=warmup, longest=0.48)

    left = raced(make_stopper(config), RACERS, shipped)
    assert 15 in left and len(left) < 16


def test_at_a_rung_all_rates_have_fallen_by_the_same_factor():
    config = SearchConfig()
    for warmup in (0.02, 0.1, 0.48):
        first = min(
            s / 1000
            for s in range(1001)
            if rung_of(config, share=s / 1000, warmup=warmup, longest=0.48)
        )
        way = (first - warmup) / (1 - warmup)
        assert way == pytest.approx(0.5, abs=0.01)
        assert first >= 0.48
    assert not rung_of(config, share=0.47, warmup=0.0, longest=0.48)


def test_help_takes_less_than_two_seconds():
    def spent():
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    for arguments, word in ((["--help"], "search"), (["search", "demo", "--help"], "--resume")):
        before = spent()
        command = [sys.executable, "-m", "tune", *arguments]
        found = subprocess.run(command, capture_output=True, text=True)
        assert found.returncode == 0, found.stderr
        assert spent() - before < 2
        assert word in found.stdout
