"""Spaces: what can be searched, and what is refused before anything starts."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.settings.presets import find_preset
from tune.config import SearchConfig
from tune.dimension import Choice, Range, parse
from tune.prepare import assemble
from tune.space import AUGREG, SPACES, make_space
from tune.transfer import share_of_run, to_run, to_trial

DATA = {"samples": 12_000_000, "eval_samples": 50_000, "num_classes": 21841, "data_dir": "data"}
DEMO = {"samples": 1437, "eval_samples": 360, "num_classes": 10, "data_dir": "data"}


def plan_of(preset="demo", changes=None, data=DEMO, **settings):
    return assemble(preset, changes or {}, SearchConfig(**settings), **data)


@settings(deadline=None, max_examples=50)
@given(
    st.floats(1e-6, 1.0),
    st.floats(1.01, 1e4),
    st.booleans(),
    st.floats(0, 1),
)
def test_place_and_value_of_a_range_are_inverse(low, factor, log, share):
    numbers = Range(low=low, high=low * factor, log=log)
    value = numbers.at(share)
    assert numbers.contains(value)
    assert numbers.share(value) == pytest.approx(share, abs=1e-3)


def test_notation_gives_ranges_choices_and_plain_values():
    assert parse("loguniform(1e-4,1e-2)") == Range(low=1e-4, high=1e-2, log=True)
    assert parse("uniform(0, 0.2)") == Range(low=0, high=0.2)
    assert parse("randint(1,4)") == Range(low=1, high=4, whole=True)
    assert parse("choice(0.03,0.1)") == Choice(options=(0.03, 0.1))
    assert parse("choice(adamw,sgd)") == Choice(options=("adamw", "sgd"))
    assert parse("examples") == "examples"
    assert parse("null") is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            "optim.lrr=loguniform(1e-4,1e-2)",
            ["optim.lrr", "is not a setting", "did you mean 'optim.lr'"],
        ),
        ("optim.lr=loguniform(1e-2,1e-4)", ["optim.lr", "empty"]),
        ("optim.lr=loguniform(0,1)", ["optim.lr", "above 0"]),
        ("optim.lr=uniform(-1,1)", ["optim.lr", "must be above 0"]),
        ("optim.lr=normal(0,1)", ["optim.lr", "unknown range", "loguniform"]),
        ("optim.lr=uniform(0.1)", ["optim.lr", "two numbers"]),
        ("optim.betas=choice(1)", ["optim.betas"]),
        ("optim.name=choice(adamw,adam)", ["optim.name", "'adam'", "adamw8bit"]),
        ("global_batch=uniform(32,64)", ["global_batch", "a whole number"]),
        ("micro_batch=randint(1.5,3)", ["micro_batch", "whole"]),
        ("optim.clip_norm=choice()", ["optim.clip_norm", "empty"]),
        ("optim.warmup=uniform(0.1,0.99999)", []),
        ("optim.warmup=uniform(0.1,1.5)", ["optim.warmup", "below 1"]),
        ("optim.warmup_unit=steps", ["optim.warmup"]),
        ("model.width=choice(128,130)", ["model.width", "multiple of heads"]),
        ("optim.lr", ["SETTING=RANGE"]),
    ],
)
def test_what_a_config_refuses_is_refused_by_the_name_of_the_setting(change, words):
    if not words:
        plan_of(set=(change,))
        return
    if change.startswith("optim.warmup_unit"):
        changes = ("optim.warmup=uniform(100,300)", change)
    else:
        changes = (change,)
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        plan_of(set=changes)
    for word in words:
        assert word in str(raised.value)


def test_unknown_space_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="warmup-lr, warmup-lr-decay, augment, finetune"):
        plan_of(space="warmup")


def test_space_comes_from_a_small_file(tmp_path):
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"optim.lr": "loguniform(1e-4,1e-2)", "seed": "choice(1,2)"}))
    space = plan_of(space=str(path)).space
    assert space.name == "own"
    assert list(space.dimensions) == ["optim.lr", "seed"]


@pytest.mark.parametrize("name", SPACES)
def test_every_named_space_fits_the_recipe_for_imagenet_21k(name):
    job = plan_of("in21k-b16-30ep", data=DATA, space=name)
    assert len(job.space.corners()) >= 4


def test_recipe_ranges_are_those_around_the_recipes_own_rate():
    job = plan_of("in21k-b16-30ep", data=DATA, horizon=0.25)
    rate, warmup = (job.space.dimensions[f"optim.{name}"] for name in ("lr", "warmup"))
    assert (rate.low, rate.high) == (3e-4, 3e-3)
    # 0.5 to 12 % of the real run in examples
    assert (warmup.low, warmup.high) == (0.02, 0.48)
    assert job.space.shared == {"optim.warmup_unit": "fraction"}


def test_augment_is_augregs_grid_of_28():
    space = plan_of("in21k-b16-30ep", data=DATA, space="augment").space
    assert len(space.corners()) == 28
    found = space.settings(
        {"augmentation": "medium2", "regularisation": "on", "optim.weight_decay": 0.03}
    )
    assert (found["images.randaugment_layers"], found["mix.mixup"]) == AUGREG["medium2"][::2]
    assert found["model.dropout"] == found["model.drop_path"] == 0.1


def test_finetune_takes_the_papers_rates_and_steps():
    job = plan_of("demo", data={**DATA, "samples": 1_281_167}, space="finetune")
    assert job.horizon == 1.0
    assert job.space.dimensions["optim.lr"].options == (0.003, 0.01, 0.03, 0.06)
    steps = [job.tuned(job.settings(c)).steps(1_281_167) for c in job.space.corners()]
    assert set(steps) == {10_000, 20_000}


def test_decay_is_held_alone_or_as_the_product_by_choice():
    sample = {"optim.lr": 4e-3, "optim.warmup": 0.1}
    assert "optim.weight_decay" not in plan_of().settings(sample)
    held = plan_of(decay="product").settings(sample)
    assert held["optim.weight_decay"] * held["optim.lr"] == pytest.approx(2e-3 * 0.05)
    with pytest.raises(ValueError, match="--decay alone"):
        plan_of(decay="product", space="warmup-lr-decay")
    with pytest.raises(ValueError, match="does not follow|no effect"):
        plan_of(changes={"optim.decay_scaled_by_lr": False}, decay="product")


def test_grid_has_the_ends_and_fits_into_the_trials():
    job = plan_of(sampler="grid", trials=17)
    grid = job.space.grid(16)
    assert len(grid) == 16
    rates = {sample["optim.lr"] for sample in grid}
    assert {min(rates), max(rates)} == {6e-4, 6e-3}
    with pytest.raises(ValueError, match="set --trials 5"):
        plan_of(sampler="grid", trials=4)


@settings(deadline=None, max_examples=50)
@given(
    horizon=st.floats(0.15, 1.0),
    batch=st.sampled_from([32, 128, 512]),
    rule=st.sampled_from(["sqrt", "linear", "same"]),
    transfer=st.sampled_from(["examples", "fraction"]),
)
def test_settings_carried_to_a_trial_and_back_are_the_same(horizon, batch, rule, transfer):
    run = find_preset("demo")
    how = {"horizon": horizon, "samples": 1437, "transfer": transfer, "lr_rule": rule}
    trial = to_trial(run, batch=batch, **how)
    assert trial.epochs == pytest.approx(run.epochs * horizon)
    names = ("optim.lr", "optim.warmup", "epochs")
    given = {name: trial.flat()[name] for name in names}
    back = run.replace(to_run(trial, given, batch=run.global_batch, **how))
    assert back.optim.lr == pytest.approx(run.optim.lr, rel=1e-4)
    assert back.epochs == pytest.approx(run.epochs, rel=1e-4)
    share = share_of_run(back, "warmup", 1437)
    assert share == pytest.approx(share_of_run(run, "warmup", 1437), rel=1e-3)


def test_warmup_is_carried_in_examples_and_the_rate_by_the_root_of_the_batches():
    run = find_preset("in21k-b16-30ep")
    how = {"horizon": 0.25, "samples": 12_000_000, "transfer": "examples", "lr_rule": "sqrt"}
    trial = to_trial(run, batch=1024, **how)
    assert trial.optim.lr == pytest.approx(run.optim.lr / 2)
    examples = trial.optim.warmup * trial.epochs * 12_000_000
    assert examples == pytest.approx(10_000 * 4096, rel=1e-3)
    best = to_run(trial, {"optim.lr": 1, "optim.warmup": 1}, batch=4096, **how)
    assert best["optim.lr"] == pytest.approx(run.optim.lr)
    assert best["optim.warmup_unit"] == "examples"
    assert best["optim.warmup"] == pytest.approx(40_960_000, rel=1e-3)


def test_warmup_longer_than_a_trial_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match="--horizon above 0.1, or .* --transfer fraction"):
        plan_of(horizon=0.05)


def test_no_trial_is_stopped_before_the_longest_warmup_is_over():
    job = plan_of()
    assert job.longest_warmup == pytest.approx(0.48)
    assert job.first_rung == pytest.approx(0.51)
    assert plan_of(rungs_from=0.1).first_rung == pytest.approx(0.48)


def test_space_refuses_before_it_is_used():
    space = make_space("warmup-lr", (), find_preset("demo"), scale=1.0, samples=1437)
    assert space.contains(space.at([0.5, 0.5]))
    assert not space.contains({"optim.lr": 1.0, "optim.warmup": 0.1})
