"""What became of each tensor of a file is said, and a head is mapped row by row."""

import pytest
import torch
from random_models import random_model

from vit.config import ViTConfig
from vit.weights import load_weights, save_npz, save_weights

SHAPE = dict(image_size=12, patch_size=4, width=16, depth=2, mlp_width=32, heads=2, num_classes=5)


def make(seed=1, **settings):
    """A model none of whose weights is zero."""
    return random_model(ViTConfig(**{**SHAPE, **settings}), seed)


def test_the_account_of_a_finer_model_with_another_head_is_one_line(tmp_path):
    save_npz(tmp_path / "a.npz", make(pre_logits=True))
    loaded = load_weights(make(2, image_size=24, num_classes=3), tmp_path / "a.npz", head="drop")
    # 4 of the embeddings, 2 of the norm, 2 blocks of 12
    assert str(loaded) == (
        f"30 tensors of {tmp_path / 'a.npz'} (npz-vit names); pos_embed resampled 3x3 -> 6x6; "
        "head of 5 classes dropped; dropped: pre_logits.fc; new: head"
    )
    assert "head.weight" not in loaded.taken and set(loaded.new) == {"head.weight", "head.bias"}
    lines = dict(line.split(maxsplit=1) for line in loaded.lines())
    assert lines["pos_embed"] == "resampled 3x3 -> 6x6"
    assert lines["blocks.1.attn.qkv.weight"] == "taken"
    assert lines["head.weight"] == "new, dropped (5, 16)"
    assert lines["pre_logits.fc.bias"] == "dropped (16,)"
    assert len(lines) == 30 + 2 + 2


def test_the_account_of_the_same_model_says_that_all_was_taken(tmp_path):
    save_weights(tmp_path / "a.safetensors", make())
    loaded = load_weights(make(2), tmp_path / "a.safetensors")
    assert str(loaded) == f"32 tensors of {tmp_path / 'a.safetensors'} (timm names)"
    assert (loaded.new, loaded.dropped, loaded.grids) == ((), {}, None)


def test_fixed_positions_of_the_same_formula_are_not_resampled(tmp_path):
    fixed = dict(positions="sincos2d", pool="mean")
    save_weights(tmp_path / "a.safetensors", make(**fixed))
    loaded = load_weights(make(2, image_size=24, **fixed), tmp_path / "a.safetensors")
    assert loaded.grids is None and not loaded.new


def test_each_class_gets_its_row_and_one_that_is_lacking_is_zero_with_the_mean_bias(tmp_path):
    old, new = make(), make(2, num_classes=4)
    save_weights(tmp_path / "a.safetensors", old)
    loaded = load_weights(new, tmp_path / "a.safetensors", rows=[3, -1, 0, 3])
    images = torch.randn(3, 3, 12, 12)
    theirs, ours = old(images), new(images)
    torch.testing.assert_close(ours[:, [0, 2, 3]], theirs[:, [3, 0, 3]])
    mean = (2 * old.head.bias[3] + old.head.bias[0]) / 3
    torch.testing.assert_close(ours[:, 1], mean.expand(3))
    assert loaded.mapped == "head: 3 of 4 classes mapped; 1 that it lacks are zero"
    assert loaded.mapped in str(loaded)
    assert "head.weight" in loaded.taken
    assert "mapped by class" in "\n".join(loaded.lines())


def test_a_file_without_a_head_cannot_be_mapped_and_leaves_the_model_unchanged(tmp_path):
    new = make(2)
    save_weights(tmp_path / "a.safetensors", make(), head="drop")
    before = {name: tensor.clone() for name, tensor in new.state_dict().items()}
    with pytest.raises(ValueError, match=r"head.weight \(5, 16\) is missing in the file"):
        load_weights(new, tmp_path / "a.safetensors", rows=[0, 1, 2, 3, 4])
    assert all(torch.equal(before[name], tensor) for name, tensor in new.state_dict().items())
