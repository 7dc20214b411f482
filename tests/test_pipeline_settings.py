"""Settings: one dotted name for all readers, rules that hold everywhere, presets that build."""

import json

import pytest

from pipeline.settings.config import TrainConfig
from pipeline.settings.presets import PRESETS
from vit.model import ViT


@pytest.mark.parametrize("name", PRESETS)
def test_preset_survives_a_round_trip_through_json(name):
    config = PRESETS[name]()
    flat = json.loads(json.dumps(config.flat()))
    assert TrainConfig().replace(flat) == config
    assert config.replace(flat) == config


@pytest.mark.parametrize("name", PRESETS)
def test_preset_builds_its_model(name):
    import torch

    config = PRESETS[name]()
    with torch.device("meta"):
        ViT(config.replace({"model.num_classes": config.model.num_classes or 21843}).model)


@pytest.mark.parametrize("name", PRESETS)
def test_preset_says_where_it_comes_from_and_what_it_reaches(name):
    assert "Dataset:" in PRESETS[name].__doc__
    assert "Expected:" in PRESETS[name].__doc__


def test_settings_are_replaced_by_dotted_name():
    config = TrainConfig().replace({"optim.lr": 5e-4, "model.depth": 3, "seed": 4})
    assert (config.optim.lr, config.model.depth, config.seed) == (5e-4, 3, 4)
    assert config.flat()["optim.lr"] == 5e-4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optim.lr": -1.0}, "lr"),
        ({"optim.lrate": 1.0}, "unknown setting 'optim.lrate'; known: name"),
        ({"global_batch": 2, "workers": 3}, r"workers \(3\) cannot share a global_batch of 2"),
        ({"epochs": 0}, r"epochs \(0\)"),
        ({"log_every": 0, "eval_every": 0}, r"log_every \(0\).*; eval_every \(0\)"),
        ({"mix.mixup": 0.2, "micro_batch": 7}, "micro_batch must be even"),
        ({"name": "../x"}, "plain folder name"),
        ({"data.slice_samples": 0}, "slice_samples"),
        ({"model.patch_size": 5}, "patch_size"),
    ],
)
def test_settings_against_the_rules_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig().replace(settings)


def test_steps_are_epochs_of_the_data_rounded():
    config = TrainConfig(epochs=30, global_batch=4096)
    assert config.steps(12_350_000) == 90_454  # 30 * 12.35e6 / 4096 = 90454.1
    assert TrainConfig(epochs=0.001, global_batch=64).steps(10) == 1
