"""Static int8: its arithmetic is that of integers, and it costs next to no accuracy."""

import hashlib
import json
import os
import platform
import subprocess
import sys
from copy import deepcopy

import numpy as np
import pytest
import torch
from native_backends import SMALL, saved
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from vit.config import ImageConfig, ViTConfig
from vit.model import ViT
from vit.native import quantise as quantisation
from vit.native.__main__ import main
from vit.native.build import PROGRAM, built
from vit.native.model import NativeViT
from vit.native.quantise import FEWEST, quantise
from vit.quant import has_vnni
from vit.weights import load_weights, save_safetensors

LAYERS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
WHOLE = ImageConfig(crop_pct=1.0)
# float32 is sure of an image from this probability of its first class on
SURE = 0.6
DIGITS = {
    **{"image_size": 32, "patch_size": 8, "width": 64, "depth": 2, "mlp_width": 256, "heads": 4},
    **{"num_classes": 10, "pool": "mean"},
}


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


def simulated(model, path, images, largest):
    """Outputs of a quantised checkpoint of a PyTorch model, computed by PyTorch."""
    tensors, model = load_file(path / "model.safetensors"), deepcopy(model)
    for number, block in enumerate(model.blocks):
        for layer in LAYERS:
            name = f"blocks.{number}.{layer}"
            parent, child = layer.split(".")
            setattr(block.get_submodule(parent), child, IntegerLinear(tensors, name, largest))
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


def write_images(folder, pixels):
    folder.mkdir()
    for number, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{number:04}.png")
    return folder


def normalised(pixels):
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32) / 127.5 - 1


@pytest.fixture(scope="module")
def pixels():
    """Images like those of the folder, of one colour with noise: (N, S, S, 3)."""
    draw = np.random.default_rng(0)
    colours = draw.integers(40, 216, (2 * FEWEST, 1, 1, 3))
    noise = draw.integers(-40, 40, (2 * FEWEST, SMALL["image_size"], SMALL["image_size"], 3))
    return (colours + noise).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(pixels, tmp_path_factory):
    """A folder of half of the images."""
    return write_images(tmp_path_factory.mktemp("images") / "images", pixels[::2])


def test_an_observer_sees_what_each_layer_of_the_blocks_is_given(backend, tmp_path, pixels):
    model, path = saved(tmp_path / "model", pool="mean")
    expected, found = [], []
    for number, block in enumerate(model.blocks):
        for layer in LAYERS:
            block.get_submodule(layer).register_forward_pre_hook(
                lambda module, given, name=f"blocks.{number}.{layer}": expected.append(
                    (name, given[0].flatten(0, 1).numpy())
                )
            )
    images = normalised(pixels[:3])
    logits = outputs(model, images)
    with NativeViT.open(path, backend=backend, threads=1) as native:
        seen = native.observe(images, lambda *given: found.append((given[0], given[1].copy())))
        with pytest.raises(ZeroDivisionError):
            native.observe(images, lambda layer, values: 1 / 0)
    np.testing.assert_allclose(seen, logits, atol=2e-5)
    assert [name for name, _ in found] == [name for name, _ in expected]
    for (name, values), (_, given) in zip(found, expected, strict=True):
        np.testing.assert_allclose(values, given, atol=1e-4, err_msg=name)


@pytest.mark.parametrize(
    "settings",
    [
        {"pool": "mean"},
        {"layer_scale": 0.5, "qkv_bias": False, "gelu": "tanh", "registers": 2},
        {"width": 35, "heads": 7, "mlp_width": 33, "dtype": torch.bfloat16},
    ],
    ids=str,
)
def test_int8_computes_what_its_integers_say(backend, tmp_path, folder, pixels, settings):
    model, path = saved(tmp_path / "model", images=WHOLE, **settings)
    quantise(path, [folder], tmp_path / "int8", backend=backend, threads=1)
    images = normalised(pixels[1::2])
    exact = simulated(model, tmp_path / "int8", images, 255 if has_vnni() else 127)
    with NativeViT.open(tmp_path / "int8", backend=backend, precision="int8", threads=1) as native:
        found = native(images)
    cost = off(exact, outputs(model, images))
    assert 1e-3 < cost < 0.05
    # a sum in another order moves a value to the next code now and then
    assert off(found, exact) < cost / 10


@pytest.mark.skipif(platform.machine() != "x86_64", reason="x86 CPUs alone lack VNNI")
@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_without_vnni_inputs_have_7_bits_and_bfloat16_is_refused(backend, tmp_path, folder, pixels):
    model, path = saved(tmp_path / "model", images=WHOLE)
    np.save(tmp_path / "images.npy", normalised(pixels[1::2]))
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
    refused = "this CPU has no AVX-512, which bfloat16 needs; use precision=float32"
    assert refused in done.stderr.splitlines()[-1], done.stderr
    images = np.load(tmp_path / "images.npy")
    exact = simulated(model, tmp_path / "int8", images, 127)
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


def test_outliers_of_layer_norms_move_to_the_weights(
    backend, tmp_path, folder, pixels, monkeypatch
):
    model, path = saved(tmp_path / "model", images=WHOLE)
    with torch.no_grad():
        for block in model.blocks:
            block.norm1.weight[::40] *= 20
            block.norm2.weight[::40] *= 20
    save_safetensors(path / "model.safetensors", model.state_dict())
    images, cost = normalised(pixels[1::2]), {}
    for name in ("smooth", "plain"):
        if name == "plain":
            monkeypatch.setattr(quantisation, "smoothing", lambda weight, _: weight[0] * 0 + 1)
        quantise(path, [folder], tmp_path / name, backend=backend, threads=1)
        with NativeViT.open(
            tmp_path / name, backend=backend, precision="int8", threads=1
        ) as native:
            cost[name] = off(native(images), outputs(model, images))
    assert cost["smooth"] < cost["plain"] / 2


def test_the_command_writes_a_checkpoint_a_quarter_as_large(backend, tmp_path, folder, caplog):
    _, path = saved(tmp_path / "model", width=192, mlp_width=768)
    out = tmp_path / "new/int8"
    words = ["quantise", str(path), str(folder), "--out", str(out)]
    assert main([*words, "--backend", backend, "--threads", "1"]) == 0
    assert "calibrate  32/32 images" in caplog.text
    assert "off float32's on these images" in caplog.text
    weights = out / "model.safetensors"
    assert weights.stat().st_size < 0.35 * (path / "model.safetensors").stat().st_size
    assert (out / "config.json").read_bytes() == (path / "config.json").read_bytes()
    meta = json.loads((out / "meta.json").read_text())
    assert meta["classes"] == json.loads((path / "meta.json").read_text())["classes"]
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert meta["files"]["model.safetensors"] == [weights.stat().st_size, sha256]
    assert [file.name for file in out.parent.iterdir()] == ["int8"]


def test_the_program_without_python_reads_what_was_quantised(backend, tmp_path, folder, pixels):
    _, path = saved(tmp_path / "model", images=WHOLE)
    quantise(path, [folder], tmp_path / "int8", backend=backend, threads=1)
    Image.fromarray(pixels[1]).save(tmp_path / "a.ppm")
    with NativeViT.open(tmp_path / "int8", backend=backend, precision="int8", threads=1) as native:
        first = native(normalised(pixels[1:2])).argmax()
    words = ["--precision", "int8", "--threads", "1", tmp_path / "int8", tmp_path / "a.ppm"]
    done = subprocess.run(
        [built(backend).with_name(PROGRAM), *words], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[1].split()[1] == f"n{first:08}"


def test_files_and_precisions_that_do_not_match_are_refused(backend, tmp_path, folder):
    model, path = saved(tmp_path / "model")
    quantise(path, [folder], tmp_path / "int8", backend=backend, threads=1)
    with pytest.raises(ValueError, match="is quantised; open it with precision=int8"):
        NativeViT.open(tmp_path / "int8", backend=backend)
    with pytest.raises(ValueError, match=r"is not quantised, .* quantise .* writes a file"):
        NativeViT.open(path, backend=backend, precision="int8")
    with pytest.raises(ValueError, match="is quantised, which only vit.native reads"):
        load_weights(model, tmp_path / "int8")
    with pytest.raises(ValueError, match="is quantised already"):
        quantise(tmp_path / "int8", [folder], tmp_path / "again", backend=backend)


@pytest.mark.parametrize("ends", [(1.0, 2.0), (0.0, 0.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_an_impossible_range_of_inputs_is_refused(backend, tmp_path, folder, ends, monkeypatch):
    _, path = saved(tmp_path / "model")
    ends = np.array(ends, np.float32)
    monkeypatch.setattr(quantisation.Extremes, "range", ends)
    with pytest.raises(ValueError, match="attn.qkv.input_range goes from .* around 0 is needed"):
        quantise(path, [folder], tmp_path / "int8", backend=backend, threads=1)
    assert not list(tmp_path.glob("*int8*"))  # nor anything half written


def test_images_that_cannot_calibrate_are_refused(backend, tmp_path, folder, pixels):
    _, path = saved(tmp_path / "model")
    few = write_images(tmp_path / "few", pixels[:3])
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")

    def refused(match, *images, **options):
        with pytest.raises(ValueError, match=match):
            quantise(path, images, tmp_path / "int8", backend=backend, **options)

    refused("there is nothing to calibrate on; give image files")
    refused("there are 3 images in .*few, but calibration takes 32 or more", few)
    refused("there is no file or folder .*nowhere", tmp_path / "nowhere")
    refused("count is 5, but calibration takes 32 images or more", folder, count=5)
    refused(r"1 of 33 images cannot be read.*\n.*broken.jpg: ", folder, tmp_path / "broken.jpg")
    (tmp_path / "int8").mkdir()
    refused("int8 exists already", folder)


def test_weights_that_are_not_finite_are_refused(backend, tmp_path, folder):
    model, path = saved(tmp_path / "model")
    with torch.no_grad():
        model.blocks[1].norm1.weight[3] = float("nan")
    save_safetensors(path / "model.safetensors", model.state_dict())
    with pytest.raises(ValueError, match=r"inputs of blocks\.1\.attn\.qkv are not finite"):
        quantise(path, [folder], tmp_path / "int8", backend=backend, threads=1)
