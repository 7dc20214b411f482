"""The native back ends compute what PyTorch computes, for every model that they take."""

import json
import threading

import numpy as np
import psutil
import pytest
import torch
from native_backends import computed, distance, images_for, saved
from safetensors.torch import load_file, save_file

from vit.config import ViTConfig
from vit.native.model import NativeViT
from vit.weights import save_weights

VARIANTS = {
    "class token": {},
    "mean": {"pool": "mean"},
    "mean, norm after it": {"pool": "mean", "fc_norm": True},
    "registers": {"registers": 3},
    "registers, mean": {"registers": 3, "pool": "mean"},
    "registers, mean, norm after it": {"registers": 3, "pool": "mean", "fc_norm": True},
    "no class position": {"class_position": False},
    "no class position, registers": {"class_position": False, "registers": 2},
    "fixed positions": {"positions": "sincos2d"},
    "layer scale": {"layer_scale": 0.1},
    "no biases of q, k, v": {"qkv_bias": False},
    "tanh GELU": {"gelu": "tanh"},
    "large epsilon": {"norm_eps": 1e-2},
    "small epsilon": {"norm_eps": 1e-12},
    "tanh before the head": {"pre_logits": True},
    "no head": {"head": False},
    "no head, tanh": {"head": False, "pre_logits": True},
    "no head, mean": {"head": False, "pool": "mean"},
    "no head, mean, norm after it": {"head": False, "pool": "mean", "fc_norm": True},
    "heads of 20": {"width": 100, "heads": 5},
    "heads of 5": {"width": 35, "heads": 7, "mlp_width": 33},
    "one head": {"heads": 1},
    "one patch": {"image_size": 8},
    "one patch, mean": {"image_size": 8, "pool": "mean"},
    "patches of 7": {"image_size": 21, "patch_size": 7},
    "one block": {"depth": 1},
    "one class": {"num_classes": 1},
    "1,001 classes": {"num_classes": 1001},
    "300 tokens": {"image_size": 136, "depth": 1},
}
# size, side of the images, batch, pool
SIZES = [
    *(("Ti/16", 224, 2, "token"), ("S/32", 224, 3, "mean"), ("S/16", 224, 1, "mean")),
    *(("B/16", 224, 1, "token"), ("Ti/16", 384, 1, "mean"), ("S/32", 384, 2, "token")),
]


def assert_same(native, model, images):
    """Outputs are those of PyTorch, and about as near to those in float64 as PyTorch's are."""
    outputs, float32 = native(images), computed(model, images)
    float64 = computed(model.double(), images)
    model.float()
    assert distance(outputs, float32) < 2e-5
    assert distance(outputs, float64) < 2e-6 + 3 * distance(float32, float64)


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_each_variant_of_the_model_computes_the_same_as_in_pytorch(backend, tmp_path, settings):
    model, path = saved(tmp_path, **settings)
    with NativeViT.open(path, backend=backend, threads=1) as native:
        assert_same(native, model, images_for(model, 3))


@pytest.mark.parametrize(("name", "size", "batch", "pool"), SIZES)
def test_each_size_computes_the_same_as_in_pytorch(backend, tmp_path, name, size, batch, pool):
    settings = ViTConfig.named(name, image_size=size, num_classes=1000, pool=pool)
    model, path = saved(tmp_path, **settings.flat())
    with NativeViT.open(path, backend=backend, threads=2) as native:
        assert_same(native, model, images_for(model, batch))
    (path / "model.safetensors").unlink()  # hundreds of megabytes


def test_batches_of_any_size_follow_one_another(backend, tmp_path):
    model, path = saved(tmp_path, pool="mean")
    images = images_for(model, 13)
    expected = computed(model, images)
    with NativeViT.open(path, backend=backend, threads=2) as native:
        for batch in (1, 2, 3, 4, 5, 6, 1, 13, 7, 9, 1):  # more sizes than stay set up
            assert distance(native(images[:batch]), expected[:batch]) < 2e-5
        assert native(images[:0]).shape == (0, 10)


def test_the_same_images_have_the_same_outputs_to_the_last_bit(backend, tmp_path):
    model, path = saved(tmp_path)
    images = images_for(model, 4)
    with NativeViT.open(path, backend=backend, threads=2) as native:
        first = native(images)
        assert all(np.array_equal(native(images), first) for _ in range(5))


def test_a_model_computes_for_several_threads_and_beside_another_model(backend, tmp_path):
    one, first = saved(tmp_path / "one")
    two, second = saved(tmp_path / "two", seed=1, pool="mean", width=64, heads=2, patch_size=5)
    models = [one, two, one, two]
    images = [images_for(model, 2 + i, seed=i) for i, model in enumerate(models)]
    expected = [computed(model, x) for model, x in zip(models, images, strict=True)]
    wrong = []

    def compute(native, i):
        for _ in range(10):
            if not distance(native(images[i]), expected[i]) < 2e-5:
                wrong.append(i)

    with (
        NativeViT.open(first, backend=backend, threads=2) as a,
        NativeViT.open(second, backend=backend, threads=1) as b,
    ):
        threads = [threading.Thread(target=compute, args=((a, b)[i % 2], i)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_bfloat16_is_as_exact_as_its_roundings_allow(backend, tmp_path):
    """Numbers of 8 bits are off by up to u = 2^-9 of their value, evenly: u / sqrt(3) on average.

    The value of a block passes ten roundings (inputs and weights of four layers, queries and keys,
    weights of the attention), that of the patches two. Independent errors add up by their squares,
    and of some ten outputs the worst is off by less than four times the average.
    """
    model, path = saved(tmp_path)
    images = images_for(model, 3)
    try:
        native = NativeViT.open(path, backend=backend, threads=1, precision="bfloat16")
    except ValueError as error:
        if "bfloat16 needs" not in str(error):
            raise
        pytest.skip(str(error))
    with native:
        outputs = native(images)
    bound = 4 * 2**-9 / 3**0.5 * (10 * model.config.depth + 2) ** 0.5
    assert bound / 50 < distance(outputs, computed(model.double(), images)) < bound


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["F16", "BF16"])
def test_weights_of_16_bits_are_read_as_the_numbers_that_they_are(backend, tmp_path, dtype):
    model, path = saved(tmp_path, dtype=dtype)
    with NativeViT.open(path, backend=backend, threads=1) as native:
        assert_same(native, model, images_for(model, 2))


def test_a_single_file_tells_its_facts_in_its_metadata(backend, tmp_path):
    facts = {"heads": 4, "gelu": "tanh", "norm_eps": 1e-3}
    model, _ = saved(tmp_path / "folder", **facts)
    save_weights(tmp_path / "weights.safetensors", model)
    with NativeViT.open(tmp_path / "weights.safetensors", backend=backend, threads=1) as native:
        assert_same(native, model, images_for(model, 2))


def test_a_file_of_timm_has_its_heads_of_64_channels(backend, tmp_path):
    model, path = saved(tmp_path, width=128, heads=2)
    (path / "config.json").unlink()
    with NativeViT.open(path / "model.safetensors", backend=backend, threads=1) as native:
        assert_same(native, model, images_for(model, 2))


def test_a_folder_of_timm_tells_its_facts_in_the_metadata_of_its_file(backend, tmp_path):
    facts = {"heads": 4, "gelu": "tanh", "norm_eps": 1e-3}
    model, path = saved(tmp_path, **facts)
    save_weights(path / "model.safetensors", model)
    (path / "config.json").write_text(json.dumps({"architecture": "vit", "pretrained_cfg": {}}))
    with NativeViT.open(path, backend=backend, threads=1) as native:
        assert_same(native, model, images_for(model, 2))


def test_heads_that_nothing_states_are_those_of_the_published_model_or_refused(backend, tmp_path):
    model, path = saved(tmp_path / "h", width=1280, heads=16, depth=32, mlp_width=64)
    (path / "config.json").unlink()
    with NativeViT.open(path, backend=backend, threads=2) as native:
        assert_same(native, model, images_for(model, 1))
    _, path = saved(tmp_path / "odd")
    (path / "config.json").unlink()
    with pytest.raises(ValueError, match="does not state the number of heads, which a width of 96"):
        NativeViT.open(path, backend=backend)


def test_the_mean_beside_a_class_token_is_refused(backend, tmp_path):
    _, path = saved(tmp_path, pool="mean", fc_norm=True)
    tensors = load_file(path / "model.safetensors")
    save_file(tensors | {"cls_token": torch.zeros(1, 1, 96)}, path / "model.safetensors")
    with pytest.raises(ValueError, match="has cls_token and fc_norm.weight"):
        NativeViT.open(path, backend=backend)


def test_images_need_be_neither_contiguous_nor_float32(backend, tmp_path):
    model, path = saved(tmp_path)
    images = images_for(model, 4)
    with NativeViT.open(path, backend=backend, threads=1) as native:
        expected = native(images)
        for same in (np.asfortranarray(images), images.astype(np.float64), images[::-1][::-1]):
            assert np.array_equal(native(same), expected)


@pytest.mark.parametrize("shape", [(3, 40, 40), (1, 3, 40, 41), (1, 1, 40, 40), (1, 40, 40, 3), ()])
def test_images_of_another_shape_are_refused(backend, tmp_path, shape):
    _, path = saved(tmp_path)
    with NativeViT.open(path, backend=backend, threads=1) as native:
        with pytest.raises(ValueError, match=r"the model takes \(B, 3, 40, 40\)"):
            native(np.zeros(shape, np.float32))


@pytest.mark.parametrize("settings", [{"pool": "map"}, {"qk_norm": True}], ids=["map", "qk_norm"])
def test_models_that_only_pytorch_computes_are_refused_by_name(backend, tmp_path, settings):
    _, path = saved(tmp_path, **settings)
    with pytest.raises(ValueError, match=r"has (attn_pool|.*q_norm).*by the PyTorch model only"):
        NativeViT.open(path, backend=backend)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"precision": "fp4"}, "precision is fp4; known: float32, tf32, bfloat16, int8, float8"),
        ({"threads": -1}, "threads is -1; give a number from 0 to 256"),
        ({"threads": "two"}, "threads is two"),
        ({"colour": "red"}, "unknown option colour; known: precision, threads, device"),
        ({"device": "tpu"}, "device is tpu"),
    ],
)
def test_an_option_that_is_not_known_is_an_error_that_names_it(backend, tmp_path, option, message):
    _, path = saved(tmp_path)
    with pytest.raises(ValueError, match=message):
        NativeViT.open(path, backend=backend, **option)


def test_a_model_describes_itself(backend, tmp_path):
    model, path = saved(tmp_path, num_classes=7)
    with NativeViT.open(path, backend=backend, threads=3) as native:
        found = native.description
    assert (found.image_size, found.outputs) == (40, 7)
    assert found.num_parameters == model.config.num_parameters
    assert found.num_tensors == len(model.state_dict())
    assert found.device.decode()


def test_a_closed_model_says_so(backend, tmp_path):
    model, path = saved(tmp_path)
    native = NativeViT.open(path, backend=backend)
    native.close()
    native.close()
    with pytest.raises(ValueError, match="null pointer"):
        native(images_for(model, 1))


def test_a_closed_model_leaves_no_memory_behind(backend, tmp_path):
    model, path = saved(tmp_path, width=192)
    images, process, used = images_for(model, 2), psutil.Process(), []
    for _ in range(50):
        with NativeViT.open(path, backend=backend, threads=1) as native:
            native(images)
        used.append(process.memory_info().rss)
    assert used[-1] - used[9] < 10 * 4 * model.config.num_parameters  # of 40 models
