"""Settings: one dotted name for all readers, rules that hold everywhere, presets that build."""

import json

import pytest

from pipeline.settings.config import TrainConfig
from pipeline.settings.presets import PRESETS, find_preset, read_preset
from tune.config import SearchConfig
from tune.prepare import make_plan
from vit.config import OptimConfig
from vit.model import ViT


@pytest.mark.parametrize("name", PRESETS)
def test_preset_survives_a_round_trip_through_json(name):
    config = PRESETS[name].config
    flat = json.loads(json.dumps(config.flat()))
    assert TrainConfig().replace(flat) == config
    assert config.replace(flat) == config


@pytest.mark.parametrize("name", PRESETS)
def test_preset_builds_its_model(name):
    import torch

    config = PRESETS[name].config
    with torch.device("meta"):
        ViT(config.replace({"model.num_classes": config.model.num_classes or 21843}).model)


@pytest.mark.parametrize("name", PRESETS)
def test_preset_says_where_it_comes_from_what_it_reaches_and_what_it_costs(name):
    preset = PRESETS[name]
    assert preset.config.name == name
    assert preset.source and preset.expected and preset.measured
    assert preset.gpu_hours is None or preset.gpu_hours > 0
    for word in ("source", "expected", "measured", "cost"):
        assert word in str(preset)


def test_a_near_miss_in_the_name_of_a_preset_is_suggested():
    with pytest.raises(ValueError, match="did you mean 'in21k-s16-30ep'"):
        find_preset("in21k-s16-30")


def test_settings_are_replaced_by_dotted_name():
    config = TrainConfig().replace({"optim.lr": 5e-4, "model.depth": 3, "seed": 4})
    assert (config.optim.lr, config.model.depth, config.seed) == (5e-4, 3, 4)
    assert config.flat()["optim.lr"] == 5e-4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optim.lr": -1.0}, r"optim\.lr \(-1\.0\) must be above 0"),
        ({"optim.lrate": 1.0}, "'optim.lrate' is not a setting; did you mean 'optim.lr'"),
        ({"global_batch": 2, "workers": 2}, r"workers \(2\) cannot share a global_batch of 2"),
        ({"global_batch": 5, "workers": 4}, r"workers \(4\) .*use at most 3, or a larger"),
        ({"global_batch": 1000, "workers": 512}, r"workers \(512\) .*use at most 500"),
        ({"epochs": 0}, r"epochs \(0\)"),
        ({"log_every": 0, "eval_every": 0}, r"log_every \(0\).*; eval_every \(0\)"),
        ({"optim.lr": -1.0, "model.depth": 0}, r"model\.depth \(0\).*; optim\.lr \(-1\.0\)"),
        ({"residual": "bf16", "precision": "fp32"}, r"residual .*has no effect without"),
        ({"cuda_graphs": True, "compile": False}, r"cuda_graphs \(True\) needs compile"),
        (
            {"cuda_graphs": True, "parallel": "fsdp"},
            r"cuda_graphs \(True\) needs compile, and parallel ddp",
        ),
        ({"mix.mixup": 0.2, "micro_batch": 7}, r"micro_batch \(7\) must be even"),
        ({"name": "../x"}, "plain folder name"),
        ({"data.slice_samples": 0}, r"data\.slice_samples"),
        ({"model.patch_size": 5}, r"model\.image_size \(224\) must be a multiple of patch_size"),
    ],
)
def test_settings_against_the_rules_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig().replace(settings)


@pytest.mark.parametrize(("batch", "workers"), [(4096, 12), (4096, 2048), (5, 3), (1, 1)])
def test_a_batch_may_be_shared_by_as_many_workers_as_it_has_pairs(batch, workers):
    mix = {"mix.mixup": 0.0, "mix.cutmix": 0.0}
    config = TrainConfig().replace({"global_batch": batch, "workers": workers, **mix})
    assert config.workers == workers


WRONG = {
    "optim.schedule": ("Cosine", "one of cosine, linear, constant, rsqrt; did you mean 'cosine'"),
    "model.pool": ("avg", "one of token, mean, map"),
    "model.positions": ("Learned", "one of learned, sincos2d; did you mean 'learned'"),
    "device": ("GPU", "one of auto, gpu, cpu; did you mean 'gpu'"),
    "parallel": ("DDP", "one of ddp, fsdp, hsdp; did you mean 'ddp'"),
    "precision": ("BF16", "one of bf16, fp32; did you mean 'bf16'"),
    "optim.name": ("AdamW", "one of adamw, adamw8bit, lamb, sgd; did you mean 'adamw'"),
    "loss.name": ("sigmod", "one of softmax, sigmoid, semantic; did you mean 'sigmoid'"),
    "optim.lr": ("0.1x", "must be a number"),
    "epochs": ("many", "must be a number"),
    "workers": (2.5, "must be a whole number"),
    "compile": ("yes", "must be true or false"),
    "optim.betas": ([0.9], "must be 2 values, each a number"),
    "crops": ("foo", "unknown crops 'foo'; known: center, three, five, ten"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_value_is_refused_with_the_choices_wherever_it_comes_from(name, tmp_path):
    value, message = WRONG[name]
    named = f"{name} ({tuple(value) if isinstance(value, list) else value!r}"
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        TrainConfig().replace({name: value})
    assert named in str(raised.value) and message in str(raised.value)
    group, _, field = name.rpartition(".")
    kind = type(getattr(TrainConfig(), group)) if group else TrainConfig
    with pytest.raises(ValueError, match=field):  # as Python makes it
        kind(**{field: value})
    (tmp_path / "preset.json").write_text(json.dumps({"preset": "demo", "settings": {name: value}}))
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        read_preset(tmp_path / "preset.json")
    assert named in str(raised.value) and "preset.json" in str(raised.value)
    (tmp_path / "space.json").write_text(json.dumps({name: f"choice({json.dumps(value)})"}))
    with pytest.raises(ValueError, match=field):
        make_plan("demo", find_preset("demo"), SearchConfig(space=str(tmp_path / "space.json")))


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"preset": "demo"}', '{"preset": "demo", "settings": []}', "\xff"],
)
def test_a_file_that_is_not_a_preset_is_refused_with_its_form(content, tmp_path):
    (tmp_path / "x.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match="x.json is not a preset file .*must be JSON such as"):
        read_preset(tmp_path / "x.json")


def test_what_may_change_on_resume_is_said_by_each_setting():
    free = {name for name, metadata, _ in TrainConfig().items() if metadata.get("may_change")}
    for name in (
        "workers",
        "data.dir",
        "data.allow_upsampling",
        "probe.shots",
        "record.models",
        "crops",
        "compile",
    ):
        assert name in free
    for name in ("seed", "epochs", "optim.lr", "model.width", "data.slice_samples", "precision"):
        assert name not in free


def test_lists_of_json_become_tuples():
    config = TrainConfig().replace({"optim.betas": [0.8, 0.9]})
    assert config.optim.betas == OptimConfig(betas=[0.8, 0.9]).betas == (0.8, 0.9)


def test_steps_are_epochs_of_the_data_rounded():
    config = TrainConfig(epochs=30, global_batch=4096)
    assert config.steps(12_350_000) == 90_454  # 30 * 12.35e6 / 4096 = 90454.1
    assert TrainConfig(epochs=0.001, global_batch=64).steps(10) == 1
