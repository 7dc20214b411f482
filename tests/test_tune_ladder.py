"""From rung to rung to the answer, on runs whose loss is a formula; no Ray."""

import dataclasses
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from tune_runs import LR, LR_SLOPE, WARMUP, WARMUP_SLOPE, loss_of, optimum, plan_in

from pipeline.settings.presets import find_preset
from tune.answer import Answer, Gain
from tune.config import SearchConfig
from tune.ladder import confirmation, planned
from tune.prepare import make_plan
from tune.trial import DIVERGED, DONE, Outcome, Trial

RUNGS = {"rungs": ["16/64", "5/16", "3/4"], "seeds": 4}
PAIRS = 3  # comes after the rungs


def exact(rate, warmup, horizon, seed):
    """The formula without its noise; the level of the seed stays."""
    best_rate, best_warmup = optimum(horizon)
    far = 0.05 * math.log(rate / best_rate) ** 2 + 0.02 * math.log(warmup / best_warmup) ** 2
    return 0.3 + far + random.Random(seed).gauss(0, 0.05)


def no_effect(*run):
    return 0.3 + random.Random(str(run)).gauss(0, 0.01)


def ended(plan, trial, loss):
    """A trial at its end; a rate above 0.05 diverges."""
    horizon, config = plan.horizon(trial.rung), plan.tuned(trial.sample, plan.horizon(trial.rung))
    if config.optim.lr > 0.05:
        outcome = Outcome(status=DIVERGED, reason="loss 50 in step 3")
    else:
        value = loss(config.optim.lr, config.optim.warmup, horizon, trial.seed)
        images = config.steps(plan.samples) * config.global_batch
        values = {"val/loss": value, "val/top1": 1 - value}
        outcome = Outcome(status=DONE, values=values, images=images)
    return dataclasses.replace(trial, status=outcome.status, outcome=outcome)


def searched(plan, loss=loss_of, pick=lambda waiting: waiting[0]):
    """All trials of a search, which end one after another in the order of `pick`."""
    trials = []
    while True:
        names = {trial.name for trial in trials}
        waiting = [trial for trial in planned(plan, trials) if trial.name not in names]
        if not waiting:
            return sorted(trials, key=lambda trial: trial.name)
        trials.append(ended(plan, pick(waiting), loss))


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    return plan_in(tmp_path_factory.mktemp("runs"), **RUNGS)


@pytest.fixture(scope="module")
def trials(plan):
    return searched(plan)


@settings(deadline=None, max_examples=4)
@given(seed=st.integers(0, 2**32))
def test_the_trials_are_the_same_in_whatever_order_they_end(plan, trials, seed):
    assert searched(plan, pick=random.Random(seed).choice) == trials


def test_a_rung_waits_for_the_ends_of_all_trials_of_the_one_before(plan, trials):
    first = [trial for trial in trials if trial.rung == 0]
    assert len(planned(plan, first)) == 16 + 5
    assert len(planned(plan, first[1:])) == 16
    for status in ("running", "failed"):
        assert len(planned(plan, [dataclasses.replace(first[0], status=status), *first[1:]])) == 16


def test_a_rung_has_the_preset_then_the_best_of_the_one_before_and_one_fresh_seed(trials):
    best = None
    for rung, size in enumerate((16, 5, 3)):
        here = [trial for trial in trials if trial.rung == rung]
        samples = [trial.sample for trial in here]
        assert len(samples) == size and samples[0] is None and None not in samples[1:]
        assert best is None or samples[1:] == best[: size - 1]
        assert {trial.seed for trial in here} == {rung}
        done = sorted(here[1:], key=lambda trial: trial.value("val/loss"))
        best = [trial.sample for trial in done]
    seeds = [(trial.seed, trial.sample is None) for trial in trials if trial.rung == PAIRS]
    assert sorted(seeds) == [(seed, preset) for seed in (3, 4, 5, 6) for preset in (False, True)]


@pytest.mark.parametrize(
    ("space", "preset", "first"),
    [
        ("finetune", "demo", 9),
        ("finetune", "in1k-finetune-b16-paper", 8),  # the preset is one of the 8
        ("augment", "in21k-b16-30ep", 28),
        ("augment", "demo", 29),
    ],
)
def test_no_settings_are_run_twice_in_a_rung(space, preset, first):
    plan = make_plan(preset, find_preset(preset), SearchConfig(space=space))
    rung = planned(plan, [])
    assert len(rung) == plan.rungs[0].trials == first
    assert len({str(plan.tuned(trial.sample, 1.0).flat()) for trial in rung}) == first
    assert not any(trial.sample and plan.is_preset(trial.sample) for trial in rung)


def test_the_same_values_with_other_shared_settings_are_not_the_preset(tmp_path):
    changes = ["optim.lr=choice(0.001,0.002)", "optim.warmup=0.1", "optim.name=sgd"]
    plan = plan_in(tmp_path, set=changes, rungs=["8/4"])
    assert plan.preset_sample() == {"optim.lr": 2e-3}
    assert len(planned(plan, [])) == plan.rungs[0].trials == 3
    begun = Trial(rung=1, place=1, sample={"optim.lr": 2e-3}, seed=1)
    assert len(confirmation(plan, [begun])) == 6


def test_what_was_best_in_earlier_searches_comes_first_and_once(plan):
    first = ({"optim.lr": 1e-3, "optim.warmup": 0.1}, plan.space.spread(16, 0)[0])
    warm = dataclasses.replace(plan, first=(*first, plan.preset_sample()))
    rung = planned(warm, [])
    assert [trial.sample for trial in rung[1:3]] == list(first)
    assert len(rung) == 16 == len({str(trial.sample) for trial in rung})


def test_a_rung_in_which_all_diverged_ends_the_search_with_the_way_out(tmp_path):
    plan = plan_in(tmp_path, set=["optim.lr=loguniform(1,10)"], **RUNGS)
    with pytest.raises(
        ValueError, match=r"all trials of rung 1 but the preset diverged \(loss 50.*--set 'optim"
    ):
        searched(plan)


def test_the_pairs_took_no_part_in_the_choice(plan, trials):
    answer = Answer(plan, trials)
    pairs = [trial for trial in trials if trial.rung == PAIRS]
    assert {str(trial.sample) for trial in pairs} == {"None", str(answer.found)}
    assert {t.seed for t in pairs}.isdisjoint(t.seed for t in trials if t.rung < PAIRS)
    # whatever they show, they change neither what is confirmed nor what is carried
    changed = [ended(plan, t, lambda *_: 9.0) if t in pairs and t.sample else t for t in trials]
    other = Answer(plan, changed)
    assert (other.found, other.carried) == (answer.found, answer.carried)
    assert answer.gain.is_real and not other.gain.is_real


def test_the_interval_is_students_of_paired_differences():
    preset, found = [0.52, 0.41, 0.47, 0.60], [0.50, 0.40, 0.44, 0.57]
    gain = Gain(pairs=tuple(zip(preset, found, strict=True)), sign=1)
    reference = stats.ttest_rel(preset, found).confidence_interval(0.95)
    assert gain.interval == pytest.approx((reference.low, reference.high))
    # by hand: differences 0.02 0.01 0.03 0.03, mean 0.0225, SD 0.009574, t(3) = 3.182446
    half = 3.182446 * 0.00957427 / 2
    assert gain.interval == pytest.approx((0.0225 - half, 0.0225 + half), rel=1e-5)
    assert gain.is_real and not dataclasses.replace(gain, sign=-1).is_real
    assert not dataclasses.replace(gain, pairs=gain.pairs[:1]).is_real
    # the level of a seed cancels
    plain = Gain(pairs=((0.5, 0.25), (0.5, 0.375)), sign=1)
    levels = Gain(pairs=((1000.5, 1000.25), (8.5, 8.375)), sign=1)
    assert levels.interval == plain.interval


@pytest.mark.parametrize(
    ("differences", "keeps"),
    [
        ((0.1, 0.1, 0.1, 0.2), False),
        ((0.1, -0.1, 0.1, -0.1), True),
        ((0.01, 0.01, 0.01, 0.5), True),  # better in all four, and yet within the noise
        ((-0.1, -0.1, -0.1, -0.2), True),
    ],
)
def test_the_preset_is_kept_unless_the_interval_excludes_zero(plan, trials, differences, keeps):
    def changed(trial):
        if trial.rung < PAIRS:
            return trial
        better = differences[trial.place // 2] if trial.sample else 0
        return ended(plan, trial, lambda *_: 1 - better)

    answer = Answer(plan, list(map(changed, trials)))
    assert answer.keeps == keeps
    assert answer.sentences()[0].startswith("Keep the preset" if keeps else "Use optim.lr")
    settings = answer.preset_file()["settings"]
    assert (settings["optim.lr"] == plan.run.optim.lr) == keeps
    assert settings["epochs"] == plan.run.epochs


def test_settings_that_diverged_for_a_seed_are_not_recommended(plan, trials):
    def without(place):
        lost = {"status": DIVERGED, "outcome": Outcome(status=DIVERGED, reason="loss 50")}
        at = (PAIRS, place)
        new = [dataclasses.replace(t, **lost) if (t.rung, t.place) == at else t for t in trials]
        return Answer(plan, new)

    found, preset = without(7), without(6)
    assert len(found.gain.pairs) == 3 and found.gain.is_real and found.keeps
    assert "diverged in 1 of 4 runs" in found.sentences()[0]
    assert not preset.keeps  # of the preset that is no argument against them


def test_a_preset_that_diverges_where_the_settings_found_do_not_is_left(plan, trials):
    last = len(plan.rungs)
    lost = [
        dataclasses.replace(trial, status=DIVERGED, outcome=Outcome(status=DIVERGED, reason="nan"))
        if trial.rung == last and trial.place == 0
        else trial
        for trial in trials
    ]
    answer = Answer(plan, lost)
    assert not answer.keeps
    assert "diverged in 1 of 4 runs, and the best" in answer.sentences()[0]
    assert answer.settings()["optim.lr"] == pytest.approx(answer.carried["optim.lr"])


def test_pairs_keep_the_settings_that_they_began_with(plan, trials):
    begun = [trial for trial in trials if trial.rung < len(plan.rungs) or trial.place < 2]
    moved = dataclasses.replace(begun[-1], sample={"optim.lr": 1e-3, "optim.warmup": 0.2})
    pairs = [t for t in planned(plan, [*begun[:-1], moved]) if t.rung == len(plan.rungs)]
    assert {str(trial.sample) for trial in pairs if trial.sample} == {str(moved.sample)}


def test_without_any_effect_the_preset_is_kept(tmp_path):
    plans = [plan_in(tmp_path, seed=100 * seed, **RUNGS) for seed in range(5)]
    assert sum(Answer(plan, searched(plan, no_effect)).keeps for plan in plans) >= 4


def test_the_answer_is_carried_by_the_slopes_that_were_measured(tmp_path):
    rates = ["optim.lr=loguniform(1e-3,0.05)"]
    plan = plan_in(tmp_path, rungs=["32/256", "8/64", "4/16"], set=rates)
    answer = Answer(plan, searched(plan, exact))
    assert answer.carried["optim.lr"] == pytest.approx(LR, rel=0.05)
    assert answer.carried["optim.warmup"] == pytest.approx(WARMUP, rel=0.1)
    assert answer.found["optim.lr"] == pytest.approx(optimum(1 / 16)[0], rel=0.05)
    assert answer.surface.slope("optim.lr")[0] == pytest.approx(LR_SLOPE, abs=0.03)
    assert answer.surface.slope("optim.warmup")[0] == pytest.approx(WARMUP_SLOPE, abs=0.1)
    # the real run takes these, not what was best in a trial
    assert answer.settings()["optim.lr"] == answer.carried["optim.lr"]
    # from another batch by the rule: AdamW, four times the batch, twice the rate
    plan = plan_in(tmp_path, global_batch=32, **RUNGS)
    answer = Answer(plan, searched(plan, exact))
    assert answer.settings()["optim.lr"] == pytest.approx(2 * answer.carried["optim.lr"])
    assert "the rate is multiplied by 2, a rule" in answer.sentences()[2]


def test_no_pairs_are_run_when_the_preset_itself_was_found(tmp_path):
    changes = ["optim.lr=choice(0.001,0.002,0.02)", "optim.warmup=0.1"]
    plan = plan_in(tmp_path, set=changes, rungs=["3/4"])
    trials = searched(plan, lambda rate, *_: abs(math.log(rate / 2e-3)))
    answer = Answer(plan, trials)
    assert len(trials) == 3 and answer.gain is None and answer.keeps
    assert "they are the best that the search found" in answer.sentences()[0]


def test_the_answer_counts_what_was_spent(plan, trials):
    images = sum(trial.outcome.images for trial in trials)
    cost = Answer(plan, trials).sentences()[2]
    assert f"{images:,} images trained on" in cost and f"{360 * len(trials):,} evaluated" in cost
