"""What a run will cost, against figures worked by hand and published ones."""

import pytest

from pipeline.settings.budget import Budget
from pipeline.settings.presets import find_preset
from vit.config import ViTConfig


@pytest.mark.parametrize(
    ("size", "classes", "millions"),
    # recipes of the ViT and AugReg papers, as timm and the released files count them
    [
        ("Ti/16", 1000, 5.717),
        ("S/32", 21843, 30.904),
        ("S/16", 1000, 22.051),
        ("B/16", 1000, 86.568),
        ("L/16", 21843, 325.691),
        ("H/14", 1000, 632.046),
    ],
)
def test_parameters_are_the_published_ones(size, classes, millions):
    count = ViTConfig.named(size, num_classes=classes).num_parameters
    assert round(count / 1e6, 3) == millions


def test_figures_are_those_worked_by_hand(tmp_path):
    config = find_preset("in21k-b16-30ep").replace({"data.dir": str(tmp_path / "in21k")})
    budget = Budget(config, gpu="H100", mfu=0.5)
    assert budget.steps == 96_339  # 30 * 13,153,500 / 4,096 = 96,339.1
    # 17.56 GMAC an image with its attention and 1,000 classes, as published; the last block makes
    # one of its 197 tokens after the keys and values; the head has 19,167 classes
    saved = 196 * (768**2 + 2 * 768 * 3072) + 2 * 196 * 197 * 768
    per_image = 3 * 2 * (17.56e9 - saved + (19_167 - 1000) * 768)
    assert budget.flops == pytest.approx(per_image * 96_339 * 4096, rel=2e-3)
    assert budget.seconds == pytest.approx(budget.flops / (8 * 989e12 * 0.5))
    assert "as published" in str(budget)


def test_data_without_a_published_size_must_be_there(tmp_path):
    config = find_preset("demo").replace({"data.dir": str(tmp_path / "mine")})
    with pytest.raises(FileNotFoundError, match="mine"):
        Budget(config, gpu="H100", mfu=0.4)
