"""Static int8 and float8: their arithmetic is what they say; int8 costs next to no accuracy."""

import os
import platform
import subprocess
import sys
from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import torch
from calibration_images import WHOLE, drawn, normalised, write_images
from native_backends import SMALL, largest_code, saved
from safetensors.torch import load_file
from torch import nn

from vit.config import ViTConfig
from vit.model import ViT
from vit.native import quantise as quantisation
from vit.native.model import NativeViT
from vit.native.quantise import FEWEST, quantise
from vit.weights import save_safetensors

LAYERS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
PIXELS = drawn(2 * FEWEST, SMALL["image_size"])
LARGEST_FLOAT8 = 448
# float32 is sure of an image from this probability of its first class on
SURE = 0.6
DIGITS = {
    **{"image_size": 32, "patch_size": 8, "width": 64, "depth": 2, "mlp_width": 256, "heads": 4},
    **{"num_classes": 10, "pool": "mean"},
}

variants = pytest.mark.parametrize(
    "settings",
    [
        {"pool": "mean"},
        {"layer_scale": 0.5, "qkv_bias": False, "gelu": "tanh", "registers": 2},
        {"width": 35, "heads": 7, "mlp_width": 33, "dtype": torch.bfloat16},
    ],
    ids=str,
)


class IntegerLinear(nn.Module):
    """A layer of a quantised file in exact arithmetic: float64 holds its integers."""

    def __init__(self, tensors, name, largest):
        super().__init__()
        self.codes = tensors[f"{name}.weight"].double()
        low, high = tensors[f"{name}.input_range"]
        self.scale = (high - low) / largest
        self.zero, self.largest = torch.round(-low / self.scale), largest
        self.scales = tensors[f"{name}.weight_scale"] * self.scale
        self.bias = tensors.get(f"{name}.bias", torch.zeros(()))

    def forward(self, x):
        inputs = torch.clamp(torch.round(x / self.scale) + self.zero, 0, self.largest) - self.zero
        return (inputs.double() @ self.codes.T).float() * self.scales + self.bias


class Float8Linear(nn.Module):
    """A layer of a quantised file in E4M3, with sums in float64."""

    def __init__(self, tensors, name):
        super().__init__()
        self.codes = in_float8(tensors[f"{name}.weight"].float())
        self.scale = tensors[f"{name}.input_range"].abs().max() / LARGEST_FLOAT8
        self.scales = tensors[f"{name}.weight_scale"] * self.scale
        self.bias = tensors.get(f"{name}.bias", torch.zeros(()))

    def forward(self, x):
        return (in_float8(x / self.scale) @ self.codes.T).float() * self.scales + self.bias


def in_float8(values):
    """The nearest numbers of E4M3, as float64."""
    cut = values.clamp(-LARGEST_FLOAT8, LARGEST_FLOAT8)
    return cut.to(torch.float8_e4m3fn).double()


def integers(largest):
    """What makes layers of int8."""
    return partial(IntegerLinear, largest=largest)


def simulated(model, path, images, layer_of):
    """Outputs of a quantised checkpoint of a PyTorch model, computed by PyTorch.

    `layer_of` makes a layer of the blocks, from the tensors of the file and its name.
    """
    tensors, model = load_file(path / "model.safetensors"), deepcopy(model)
    for number, block in enumerate(model.blocks):
        for layer in LAYERS:
            name = f"blocks.{number}.{layer}"
            parent, child = layer.split(".")
            setattr(block.get_submodule(parent), child, layer_of(tensors, name))
    floats = {name: t for name, t in tensors.items() if name in model.state_dict()}
    model.load_state_dict(floats, strict=False)
    with torch.inference_mode():
        return model(torch.from_numpy(images)).numpy()


def outputs(model, images):
    """Outputs of a PyTorch model."""
    with torch.inference_mode():
        return model(torch.from_numpy(images)).numpy()


def off(found, expected):
    """Root mean square of the difference, as a share of what was expected."""
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of half of the images."""
    return write_images(tmp_path_factory.mktemp("images") / "images", PIXELS[::2])


def test_an_observer_sees_what_each_layer_of_the_blocks_is_given(backend, tmp_path):
    model, path = saved(tmp_path / "model", pool="mean")
    expected, found = [], []
    for number, block in enumerate(model.blocks):
        for layer in LAYERS:
            block.get_submodule(layer).register_forward_pre_hook(
                lambda module, given, name=f"blocks.{number}.{layer}": expected.append(
                    (name, given[0].flatten(0, 1).numpy())
                )
            )
    images = normalised(PIXELS[:3])
    logits = outputs(model, images)
    with NativeViT.open(path, backend=backend, threads=1) as native:
        seen = native.observe(images, lambda *given: found.append((given[0], given[1].copy())))
        with pytest.raises(ZeroDivisionError):
            native.observe(images, lambda layer, values: 1 / 0)
    np.testing.assert_allclose(seen, logits, atol=2e-5)
    assert [name for name, _ in found] == [name for name, _ in expected]
    for (name, values), (_, given) in zip(found, expected, strict=True):
        np.testing.assert_allclose(values, given, atol=1e-4, err_msg=name)


@variants
def test_int8_computes_what_its_integers_say(backend, tmp_path, folder, settings):
    model, path = saved(tmp_path / "model", images=WHOLE, **settings)
    quantise(path, [folder], tmp_path / "int8", backend=backend, threads=1)
    images = normalised(PIXELS[1::2])
    exact = simulated(model, tmp_path / "int8", images, integers(largest_code(backend)))
    with NativeViT.open(tmp_path / "int8", backend=backend, precision="int8", threads=1) as native:
        found = native(images)
    cost = off(exact, outputs(model, images))
    assert 1e-3 < cost < 0.05
    # a sum in another order moves a value to the next code now and then
    assert off(found, exact) < cost / 10


@variants
@pytest.mark.parametrize("backend", ["cuda", "cuda-host"], indirect=True)
def test_float8_computes_what_its_numbers_say(backend, tmp_path, folder, settings):
    model, path = saved(tmp_path / "model", images=WHOLE, **settings)
    quantise(path, [folder], tmp_path / "int8", backend=backend, threads=1)
    images = normalised(PIXELS[1::2])
    exact = simulated(model, tmp_path / "int8", images, Float8Linear)
    with NativeViT.open(tmp_path / "int8", backend=backend, precision="float8") as native:
        found = native(images)
        with pytest.raises(ValueError, match="training needs precision float32"):
            native.begin_training()
    with pytest.raises(ValueError, match="is not quantised, which float8 needs"):
        NativeViT.open(path, backend=backend, precision="float8")
    cost = off(exact, outputs(model, images))
    assert 1e-2 < cost < 0.1
    assert off(found, exact) < cost / 10


@pytest.mark.parametrize("backend", ["cpu", "mojo"], indirect=True)
def test_other_back_ends_refuse_float8_by_name(backend, tmp_path):
    _, path = saved(tmp_path)
    with pytest.raises(ValueError, match="float8 needs the back end cuda; use precision=int8"):
        NativeViT.open(path, backend=backend, precision="float8")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="x86 CPUs alone lack VNNI")
@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_without_vnni_inputs_have_7_bits_and_bfloat16_is_refused(backend, tmp_path, folder):
    model, path = saved(tmp_path / "model", images=WHOLE)
    np.save(tmp_path / "images.npy", normalised(PIXELS[1::2]))
    program = """if True:
        import sys
        from pathlib import Path
        import numpy as np
        from vit.native.model import NativeViT
        from vit.native.quantise import quantise
        place, images = Path(sys.argv[1]), Path(sys.argv[2])
        quantise(place / "model", [images], place / "int8", threads=1)
        with NativeViT.open(place / "int8", precision="int8", threads=1) as model:
            np.save(place / "found.npy", model(np.load(place / "images.npy")))
        assert not {"torch", "ray"} & set(sys.modules)
        NativeViT.open(place / "model", precision="bfloat16")
    """
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), str(folder)],
        env={**os.environ, "DNNL_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
        check=False,
    )
    refused = "this CPU has neither AVX-512 nor AVX2-VNNI-2, one of which bfloat16 needs"
    assert refused in done.stderr.splitlines()[-1], done.stderr
    images = np.load(tmp_path / "images.npy")
    exact = simulated(model, tmp_path / "int8", images, integers(127))
    cost = off(exact, outputs(model, images))
    assert cost < 0.1
    assert off(np.load(tmp_path / "found.npy"), exact) < cost / 10


@pytest.fixture(scope="module")
def digits():
    """A model trained on half of the digits, like the demo's; (N, 32, 32, 3) and classes."""
    from sklearn.datasets import load_digits

    found = load_digits()
    scans = np.kron(found.images * (255 / 16), np.ones((4, 4))).astype(np.uint8)
    pixels, labels = np.repeat(scans[..., None], 3, 3), found.target
    images, classes = torch.from_numpy(normalised(pixels[::2])), torch.from_numpy(labels[::2])
    torch.manual_seed(0)
    model = ViT(ViTConfig(**DIGITS))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05)
    for _ in range(10):
        for batch in torch.randperm(len(images)).split(32):
            loss = nn.functional.cross_entropy(model(images[batch]), classes[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval(), pixels, labels


def test_int8_agrees_with_float32_and_keeps_the_accuracy(backend, tmp_path, digits):
    model, pixels, labels = digits
    _, path = saved(tmp_path / "model", images=WHOLE, **DIGITS)
    save_safetensors(path / "model.safetensors", model.state_dict())
    folder = write_images(tmp_path / "images", pixels[:256:2])
    quantise(path, [folder], tmp_path / "int8", backend=backend, threads=1)
    images, truth = normalised(pixels[1::2]), labels[1::2]
    probabilities = torch.from_numpy(outputs(model, images)).softmax(1).numpy()
    with NativeViT.open(tmp_path / "int8", backend=backend, precision="int8", threads=1) as native:
        guesses = native(images).argmax(1)
    first, sure = probabilities.argmax(1), probabilities.max(1) >= SURE
    assert sure.mean() > 0.5
    assert (guesses == first)[sure].mean() >= 0.99
    assert (guesses == truth).mean() > (first == truth).mean() - 0.005


def test_outliers_of_layer_norms_move_to_the_weights(backend, tmp_path, folder, monkeypatch):
    model, path = saved(tmp_path / "model", images=WHOLE)
    with torch.no_grad():
        for block in model.blocks:
            block.norm1.weight[::40] *= 20
            block.norm2.weight[::40] *= 20
    save_safetensors(path / "model.safetensors", model.state_dict())
    images, cost = normalised(PIXELS[1::2]), {}
    for name in ("smooth", "plain"):
        if name == "plain":
            monkeypatch.setattr(quantisation, "smoothing", lambda weight, _: weight[0] * 0 + 1)
        quantise(path, [folder], tmp_path / name, backend=backend, threads=1)
        with NativeViT.open(
            tmp_path / name, backend=backend, precision="int8", threads=1
        ) as native:
            cost[name] = off(native(images), outputs(model, images))
    assert cost["smooth"] < cost["plain"] / 2
