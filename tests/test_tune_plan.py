"""A search before it starts: sizes, rungs, cost, and what is refused; no Ray."""

import dataclasses
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tune_runs import plan_in

from pipeline.settings.budget import Budget
from pipeline.settings.presets import PRESETS, find_preset
from shards.dataset.format import MANIFEST, Manifest, Shard
from tune.__main__ import main
from tune.config import Rung, SearchConfig, cost
from tune.plan import SEARCH, read_plan, resumed
from tune.prepare import budgets, described, make_plan, trial_hours
from tune.transfer import share_of_run, to_run, to_trial
from tune.trial import Trial

S16 = "in21k-s16-30ep"
# training images, held-out images and classes: winter21 without 50 images of each class, and the
# full set of 2011
WINTER21, FALL11 = (12_195_150, 958_350, 19_167), (14_197_122, 0, 21_841)
H100 = {"gpu": "H100", "mfu": None}
SECRET = "s3://AKIDEXAMPLE:wJalrXUtnFEMI@bucket/x"


def plan_of(preset=S16, changes=None, **config):
    return make_plan(preset, find_preset(preset).replace(changes or {}), SearchConfig(**config))


def hours(plan):
    return sum(trials * trial_hours(one) for trials, one in budgets(plan, **H100))


def shard_set(folder, train, held_out, classes):
    """A set that has a manifest alone, which says as much as a plan needs."""
    folder.mkdir(parents=True)
    numbers = {"train": train, "val": held_out}
    splits = {name: (Shard(name, n, 25_000 * n, "0" * 64),) for name, n in numbers.items()}
    manifest = Manifest(classes=tuple(f"n{n:08d}" for n in range(classes)), splits=splits)
    (folder / MANIFEST).write_text(manifest.to_json())


@pytest.mark.parametrize("more", [[], ["--budget", "40"], ["--rungs", "32/256", "8/64", "3/16"]])
@pytest.mark.parametrize("sizes", [None, WINTER21, FALL11])
def test_the_command_of_the_readme_is_planned_for_the_published_sizes(
    sizes, more, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    if sizes:
        shard_set(tmp_path / find_preset(S16).data.dir, *sizes)
    assert main(["search", S16, "--space", "warmup-lr", *more, "--plan"]) == 0
    said = capsys.readouterr().out
    for word in ("GPU-hours on H100", "TB read", "of the real run (", "confirmation", S16):
        assert word in said
    plan = plan_of()
    assert (plan.samples, plan.eval_samples, plan.num_classes) == (sizes or WINTER21)


@settings(deadline=None, max_examples=15)
@given(horizon=st.floats(5e-4, 1.0), sizes=st.sampled_from([WINTER21, FALL11]))
def test_no_warmup_leaves_its_run_at_any_length(horizon, sizes):
    plan = dataclasses.replace(plan_of(), samples=sizes[0])
    of_run = share_of_run(plan.run, "warmup", plan.samples)
    for sample in (None, *plan.space.corners()):
        share = share_of_run(plan.tuned(sample, horizon), "warmup", plan.samples)
        assert share == pytest.approx(sample["optim.warmup"] if sample else of_run, rel=1e-5)
        assert share <= 0.5


def test_a_warmup_in_steps_keeps_its_share_in_short_trials_and_must_fit_the_run():
    plan = plan_of(set=("optim.warmup=8932", "optim.warmup_unit=steps"))
    for horizon in (1.0, 1 / 384):
        trial = plan.tuned({"optim.lr": 1e-3}, horizon)
        assert share_of_run(trial, "warmup", plan.samples) == pytest.approx(0.1, rel=1e-3)
    with pytest.raises(ValueError, match=r"optim\.warmup \(1\.1.*below 1"):
        plan_of(set=("optim.warmup=100000", "optim.warmup_unit=steps"))
    with pytest.raises(ValueError, match=r"optim\.warmup \(1\.1.*below 1"):
        plan_of(changes={"optim.warmup": 100_000})


@pytest.mark.parametrize("preset", [name for name in PRESETS if name.startswith("in21k")])
def test_a_search_costs_less_than_its_run_with_all_that_is_counted(preset):
    plan = plan_of(preset)
    real = Budget(plan.run.replace({"workers": 1, "min_workers": None}), gpu="H100")
    assert cost(plan.rungs, plan.config.seeds) < 1 and hours(plan) <= real.seconds / 3600
    *rungs, confirmation = budgets(plan, **H100)
    assert confirmation[0] == 2 * plan.config.seeds
    assert [trials for trials, _ in rungs] == [rung.trials for rung in plan.rungs]
    said = described(plan, **H100)
    assert all(f" {rung.trials * plan.eval_samples:,} " in said for rung in plan.rungs)
    # by hand: training, one evaluation at a third of the price of an image, two minutes of start
    first, seconds = rungs[0][1], real.train_s / real.images
    by_hand = (first.images + plan.eval_samples / 3) * seconds + 120
    assert trial_hours(first) == pytest.approx(by_hand / 3600)


@settings(deadline=None, max_examples=12)
@given(
    preset=st.sampled_from([S16, "in21k-l16-300ep", "in1k-s16-90ep", "in1k-finetune-l16"]),
    budget=st.floats(0.1, 3000),
    space=st.sampled_from(["warmup-lr", "finetune", "augment"]),
    seeds=st.integers(2, 8),
)
def test_a_budget_is_never_exceeded_and_one_too_small_names_the_least(preset, budget, space, seeds):
    config = {"space": space, "seeds": seeds}
    try:
        plan = plan_of(preset, budget=budget, **config)
    except ValueError as error:
        least = float(re.search(r"give it --budget ([\d.]+) at least", str(error))[1])
        assert least > budget
        plan, budget = plan_of(preset, budget=least, **config), least
    assert hours(plan) <= budget


def test_a_budget_is_used_for_the_longest_trials_it_allows():
    lengths = [plan_of(budget=budget).rungs[-1].horizon for budget in (5.0, 20.0, 80.0, 320.0)]
    assert lengths == sorted(lengths) and lengths[-1] == 1.0
    with pytest.raises(ValueError, match="budget: the run is on CPUs.*choose the --rungs"):
        plan_of(changes={"device": "cpu"}, budget=10.0)
    # the longest that the space has
    first, _ = budgets(plan_of(set=("epochs=choice(15,60)",), rungs=("8/64",)), **H100)
    assert first[0] * first[1].images == pytest.approx(8 * 60 / 64 * 12_195_150, rel=1e-3)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"rungs": ("8/16", "4/64")}, "rungs .* must grow longer"),
        ({"rungs": ("8/64", "16/16")}, "rungs .* must not have more trials"),
        *(({"rungs": (text,)}, "TRIALS/PARTS") for text in ("1/64", "8", "8/0.5", "x/3", "8/0")),
        ({"budget": 0.0}, r"budget \(0.0\) must be above 0"),
        ({"budget": 9.0, "rungs": ("8/16",)}, "budget .* cannot be given along"),
        ({"objective": "top1"}, "objective .*did you mean 'val/top1'"),
        ({"seeds": 1}, r"seeds \(1\) must be at least 2"),
        ({"workers": 0}, r"workers \(0\) must be at least 1"),
        ({"name": "a/b"}, "name .*must be a plain folder name"),
    ],
)
def test_contradictory_settings_are_refused_by_name(config, words):
    with pytest.raises(ValueError, match=words):
        SearchConfig(**config)


def test_more_workers_than_a_batch_can_share_are_refused_before_the_start(tmp_path):
    with pytest.raises(ValueError, match=r"workers \(100\) cannot share a global_batch of 128"):
        plan_in(tmp_path, workers=100)
    # those of the preset do not matter, since each rung has its own
    assert plan_in(tmp_path, {"workers": 64}, global_batch=16).tuned(None, 1.0).workers == 1


def test_the_rule_from_batch_to_batch_is_that_of_the_optimizer():
    run = find_preset(S16).replace({"optim.betas": [0.9, 0.999], "optim.eps": 1e-8})
    how = {"horizon": 0.25, "batch": 1024, "samples": WINTER21[0]}
    # by hand, of Malladi et al.: a quarter of the batch halves the rate, quarters 1 - beta, and
    # doubles eps
    trial = to_trial(run, **how).optim
    assert (trial.lr, trial.eps) == (run.optim.lr / 2, pytest.approx(2e-8))
    assert trial.betas == pytest.approx((0.975, 0.99975))
    assert to_run(run, {"optim.lr": 5e-4}, 1024)["optim.lr"] == 1e-3
    sgd = run.replace({"optim.name": "sgd"})
    trial = to_trial(sgd, **how).optim
    assert (trial.lr, trial.betas) == (run.optim.lr / 4, run.optim.betas)
    assert to_run(sgd, {"optim.lr": 5e-4}, 1024)["optim.lr"] == 2e-3


def test_averages_timescale_and_cooldown_keep_their_share_of_the_run():
    changes = {"optim.ema": 0.9998, "optim.schedule": "rsqrt", "optim.rsqrt_timescale": 10_000}
    changes |= {"optim.cooldown": 8932, "optim.cooldown_unit": "steps"}
    run, samples = find_preset(S16).replace(changes), WINTER21[0]
    for batch, parts in ((4096, 16), (2048, 8)):  # half of the batch has twice the steps
        trial = to_trial(run, horizon=1 / 16, batch=batch, samples=samples)
        assert trial.optim.ema == pytest.approx(1 - 0.0002 * parts)
        assert trial.optim.rsqrt_timescale == 10_000 / parts
        assert share_of_run(trial, "cooldown", samples) == pytest.approx(0.1, rel=1e-3)
    carried = to_run(run, {"optim.cooldown": 0.2, "optim.warmup": 0.1}, 4096)
    assert carried["optim.cooldown_unit"] == carried["optim.warmup_unit"] == "fraction"


def written(plan):
    plan.dir.mkdir(parents=True, exist_ok=True)
    (plan.dir / SEARCH).write_text(json.dumps(plan.flat()))
    return read_plan(plan.dir)


@pytest.mark.parametrize("space", ["warmup-lr", "augment", "finetune"])
def test_a_plan_is_the_same_after_it_was_written(space, tmp_path):
    rungs = [str(Rung.of(text)) for text in ("9/1786.4", "3/1.5")]
    plan = plan_in(tmp_path, space=space, seeds=5, rungs=rungs)
    again = written(plan)
    assert again.flat() == plan.flat()
    assert (again.rungs, again.config, again.run) == (plan.rungs, plan.config, plan.run)
    for sample in plan.space.corners():
        assert again.tuned(sample, 0.25) == plan.tuned(sample, 0.25)


def test_a_search_keeps_its_meaning_when_its_preset_and_its_space_file_change(
    tmp_path, monkeypatch
):
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"optim.lr": "loguniform(1e-4,1e-2)"}))
    plan = plan_in(tmp_path, space=str(path))
    written(plan)
    path.write_text(json.dumps({"optim.lr": "loguniform(1e-3,1e-1)"}))
    demo = PRESETS["demo"]
    changed = dataclasses.replace(demo, config=demo.config.replace({"optim.lr": 9.0}))
    monkeypatch.setitem(PRESETS, "demo", changed)
    again = read_plan(plan.dir)
    assert again.flat() == plan.flat()
    assert again.run.optim.lr == 2e-3 and again.space.dimensions["optim.lr"].high == 1e-2
    with pytest.raises(ValueError, match=r"other settings: space, base\.optim\.lr differ"):
        resumed(again, plan_in(tmp_path, space=str(path)))


def test_a_resumed_search_takes_from_the_command_only_what_may_change(tmp_path):
    old = written(plan_in(tmp_path))
    plan = resumed(old, plan_in(tmp_path, {"device": "cpu"}, seeds=6, workers=2, concurrent=1))
    assert (plan.config.seeds, plan.config.workers, plan.run.device) == (6, 2, "cpu")
    assert plan.rungs == old.rungs
    with pytest.raises(ValueError, match=r": rungs, seed, base\.epochs differ; .*another --name"):
        resumed(old, plan_in(tmp_path, {"epochs": 9}, rungs=["8/8"], seed=3))


def test_no_secret_is_written_or_shown(tmp_path, monkeypatch, capsys):
    plan = plan_in(tmp_path, {"device": "cpu"})
    plan = dataclasses.replace(plan, run=plan.run.replace({"data.dir": SECRET}))
    assert written(plan).run.data.dir == "s3://***@bucket/x"
    # with the secret in hand again, it is the same search
    assert resumed(read_plan(plan.dir), plan).run.data.dir == SECRET

    def missing(run):
        raise FileNotFoundError(f"there is no {run.data.dir}")

    monkeypatch.setattr("tune.prepare.data_size", missing)
    assert main(["search", "demo", "--base.data.dir", SECRET, "--plan"]) == 2
    monkeypatch.setattr("tune.prepare.data_size", lambda _: (1437, 360, 10, ""))
    monkeypatch.setattr("tune.prepare.bytes_of_image", lambda _: 100.0)
    monkeypatch.setattr("pipeline.settings.budget.data_size", lambda _: (1437, 360, 10, ""))
    assert main(["search", "demo", "--base.data.dir", SECRET, "--plan"]) == 0
    said = capsys.readouterr()
    assert "there is no s3://***@bucket/x" in said.err and "TB read" in said.out
    texts = [(plan.dir / SEARCH).read_text(), said.out, said.err]
    assert not any("wJalr" in text for text in texts)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rungs": ["3/4"]}, "3 trials, and a surface over optim.lr, optim.warmup takes 4"),
        ({"set": ["optim.lr=choice(0.002)", "optim.warmup=0.1"]}, "holds the preset alone"),
        ({"objective": "probe/pets/knn"}, "is no probe of the run; .* it has none"),
    ],
)
def test_a_search_that_could_not_end_is_refused_before_it_starts(tmp_path, settings, said):
    with pytest.raises(ValueError, match=said):
        plan_in(tmp_path, **settings)


def test_a_probe_is_named_by_its_set_and_kind(tmp_path):
    changes = {"probe.data": ["s3://bucket/pets"], "probe.shots": [5]}
    assert plan_in(tmp_path, changes, objective="probe/pets/5shot").config.sign == -1
    with pytest.raises(ValueError, match="it has probe/pets/5shot, probe/pets/knn"):
        plan_in(tmp_path, changes, objective="probe/pet/knn")


@given(budget=st.floats(1.2, 60))
@settings(deadline=None, max_examples=10)
def test_the_lengths_of_rungs_survive_the_file(budget):
    plan = plan_of(budget=budget)
    assert [Rung.of(str(rung)) for rung in plan.rungs] == list(plan.rungs)


def test_a_trial_is_evaluated_on_the_split_of_the_objective_alone(tmp_path):
    plan = plan_in(tmp_path, {"data.select_split": "minival"})
    trial = Trial(sample=None, rung=0, place=0, seed=1)
    assert plan.trial_config(trial, workers=1, device="cpu").data.select_split is None
