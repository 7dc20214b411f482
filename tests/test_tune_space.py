"""Spaces: what can be searched, and what is refused before anything starts; no Ray."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.settings.presets import find_preset
from tune.config import SearchConfig
from tune.dimension import Choice, Range, parse
from tune.prepare import make_plan
from tune.space import AUGREG, SPACES, Space

PAPER, B16 = "in1k-finetune-b16-paper", "in21k-b16-30ep"


def plan_of(preset="demo", **config):
    return make_plan(preset, find_preset(preset), SearchConfig(**config))


@given(
    low=st.floats(1e-6, 1.0), factor=st.floats(1.01, 1e4), log=st.booleans(), share=st.floats(0, 1)
)
def test_place_and_value_of_a_range_are_inverse(low, factor, log, share):
    numbers = Range(low=low, high=low * factor, log=log)
    assert numbers.contains(numbers.at(share))
    assert numbers.share(numbers.at(share)) == pytest.approx(share, abs=1e-3)


def test_a_range_a_choice_or_a_plain_value_is_read_and_written_alike():
    for text, value in {
        "loguniform(1e-4,1e-2)": Range(low=1e-4, high=1e-2, log=True),
        "uniform(0, 0.2)": Range(low=0, high=0.2),
        "randint(1,4)": Range(low=1, high=4, whole=True),
        "choice(adamw,sgd)": Choice(options=("adamw", "sgd")),
        "choice([1,2],[3,4])": Choice(options=([1, 2], [3, 4])),
    }.items():
        assert parse(text) == parse(str(value)) == value
    assert (parse("examples"), parse("null")) == ("examples", None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("optim.lrr=loguniform(1e-4,1e-2)", "optim.lrr.*did you mean 'optim.lr'"),
        ("optim.lr=loguniform(1e-2,1e-4)", "optim.lr: .*empty"),
        ("optim.lr=loguniform(0,1)", "optim.lr: .*above 0"),
        ("optim.lr=uniform(-1,1)", "optim.lr .*must be above 0"),
        ("optim.lr=normal(0,1)", "optim.lr: unknown range.*loguniform"),
        ("optim.lr=uniform(0.1)", "optim.lr: .*two numbers"),
        ("optim.lr=choice(0.1,0.1)", "optim.lr: .*0.1 twice"),
        ("optim.name=choice(adamw,adam)", "optim.name.*'adam'.*adamw8bit"),
        ("global_batch=uniform(32,64)", "global_batch.*a whole number"),
        ("micro_batch=randint(1.5,3)", "micro_batch: .*whole"),
        ("optim.clip_norm=choice()", "optim.clip_norm: .*empty"),
        ("optim.warmup=uniform(0.1,1.5)", "optim.warmup.*below 1"),
        ("optim.warmup_unit=steps", "optim.warmup_unit: .*leave out the unit"),
        ("model.width=choice(128,130)", "model.width.*multiple of heads"),
        ("optim.lr", "SETTING=RANGE"),
    ],
)
def test_what_a_config_refuses_is_refused_by_the_name_of_the_setting(change, words):
    with pytest.raises(ValueError, match=words):
        plan_of(set=(change,))


def test_a_space_is_a_name_a_file_or_refused_with_the_known_names(tmp_path):
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"optim.lr": "loguniform(1e-4,1e-2)", "seed": "choice(1,2)"}))
    space = plan_of(space=str(path)).space
    assert (space.name, list(space.dimensions)) == ("own", ["optim.lr", "seed"])
    with pytest.raises(ValueError, match="warmup-lr, warmup-lr-decay, augment, finetune"):
        plan_of(space="warmup")
    with pytest.raises(ValueError, match="is empty"):
        plan_of(set=("optim.lr=0.001", "optim.warmup=0.1"))


@pytest.mark.parametrize("preset", ["in21k-s16-30ep", B16, PAPER])
@pytest.mark.parametrize("name", SPACES)
def test_every_named_space_fits_the_recipes_and_keeps_its_meaning_in_a_file(name, preset):
    space = plan_of(preset, space=name).space
    again = Space.of_flat(json.loads(json.dumps(space.flat())))
    assert (again.dimensions, again.shared) == (space.dimensions, space.shared)
    assert again.levels == space.levels


def test_ranges_are_around_the_preset_at_the_batch_of_the_trials():
    rate, warmup = plan_of(B16).space.dimensions.values()
    assert rate == Range(low=3e-4, high=1e-2, log=True)
    assert warmup == Range(low=0.005, high=0.5, log=True)
    # a quarter of the batch: half the rate of AdamW, a quarter of SGD's
    assert plan_of(B16, global_batch=1024).space.dimensions["optim.lr"].low == 1.5e-4
    sgd = plan_of(PAPER, global_batch=128).space.dimensions["optim.lr"]
    assert sgd.low == pytest.approx(0.3 * 0.03 / 4)


def test_spread_points_are_even_in_any_number():
    space = plan_of().space
    for count in (8, 11, 31):
        samples = space.spread(count, seed=3)
        for name, dimension in space.dimensions.items():
            low = sum(dimension.share(sample[name]) < 0.5 for sample in samples)
            assert abs(low - count / 2) <= 2
    assert space.spread(8, 3) == space.spread(8, 3) != space.spread(8, 4)


@pytest.mark.parametrize(
    ("text", "asked", "least"),
    [
        ("choice(1,2,3)", 32, 3),
        ("randint(1,300)", 290, 290),
        ("uniform(0.999,0.9999)", 2048, 800),  # six digits: 901 values
        ("uniform(0.1,0.1000001)", 32, 1),
    ],
)
def test_a_spread_ends_and_has_no_sample_twice(text, asked, least):
    space = Space(name="one", dimensions={"a": parse(text)})
    samples = {sample["a"] for sample in space.spread(asked, 0)}
    assert len(space.spread(asked, 0)) == len(samples) >= least
    # options that are lists go along with ranges
    betas = {"optim.betas": parse("choice([0.9,0.99],[0.9,0.999])")}
    both = Space(name="two", dimensions={"b": parse("uniform(0,1)"), **betas})
    assert len(both.spread(9, 0)) == 9


def test_augment_is_augregs_grid_of_28():
    space = plan_of(B16, space="augment").space
    assert space.size == 28 == len({str(sample) for sample in space.spread(99, 0)})
    found = space.settings(
        {"augmentation": "medium2", "regularisation": "on", "optim.weight_decay": 0.03}
    )
    assert (found["images.randaugment_layers"], found["mix.mixup"]) == AUGREG["medium2"][::2]
    assert found["model.dropout"] == found["model.drop_path"] == 0.1


def test_finetune_takes_the_papers_rates_and_steps():
    plan = plan_of(PAPER, space="finetune")
    assert plan.space.dimensions["optim.lr"].options == (0.003, 0.01, 0.03, 0.06)
    steps = [plan.tuned(sample, 1.0).steps(plan.samples) for sample in plan.space.spread(99, 0)]
    assert sorted(steps) == [10_000] * 4 + [20_000] * 4
    # what is found at a batch of the space is used at that batch: nothing is scaled
    carried = plan_of(space="finetune").carried({"optim.lr": 0.03, "epochs": 4.0})
    assert (carried["optim.lr"], carried["global_batch"]) == (0.03, 512)


def test_the_preset_is_a_sample_as_far_as_a_space_can_express_it():
    changes = ("optim.name=choice(adamw,sgd)", "epochs=choice(9,18)", "optim.warmup=0.1")
    sample = plan_of(set=changes, rungs=("8/2",)).preset_sample()
    assert sample == {"optim.lr": 2e-3, "optim.name": "adamw"}
    # 7.992713 epochs, and 7.99271 in the space
    paper = plan_of(PAPER, space="finetune").preset_sample()
    assert paper == {"optim.lr": 0.03, "epochs": 7.99271}
    assert plan_of(B16, space="augment").preset_sample()["augmentation"] == "light2"
