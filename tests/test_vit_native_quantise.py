"""python -m vit.native quantise: what it writes, who reads it, and what it refuses."""

import hashlib
import json
import subprocess

import numpy as np
import pytest
import torch
from calibration_images import WHOLE, drawn, normalised, write_images
from native_backends import SMALL, saved
from PIL import Image

from vit.native import quantise as quantisation
from vit.native.__main__ import main
from vit.native.build import PROGRAM, built
from vit.native.model import NativeViT
from vit.native.quantise import FEWEST, quantise
from vit.weights import load_weights, save_safetensors

PIXELS = drawn(2 * FEWEST, SMALL["image_size"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of half of the images."""
    return write_images(tmp_path_factory.mktemp("images") / "images", PIXELS[::2])


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


def test_the_program_without_python_reads_what_was_quantised(backend, tmp_path, folder):
    _, path = saved(tmp_path / "model", images=WHOLE)
    quantise(path, [folder], tmp_path / "int8", backend=backend, threads=1)
    Image.fromarray(PIXELS[1]).save(tmp_path / "a.ppm")
    with NativeViT.open(tmp_path / "int8", backend=backend, precision="int8", threads=1) as native:
        first = native(normalised(PIXELS[1:2])).argmax()
    words = ["--precision", "int8", "--threads", "1", tmp_path / "int8", tmp_path / "a.ppm"]
    done = subprocess.run(
        [built(backend).with_name(PROGRAM), *words], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[1].split()[1] == f"n{first:08}"


def test_files_and_precisions_that_do_not_match_are_refused(backend, tmp_path, folder):
    model, path = saved(tmp_path / "model")
    quantise(path, [folder], tmp_path / "int8", backend=backend, threads=1)
    with pytest.raises(ValueError, match="is quantised; open it with precision=int8, or float8"):
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


def test_images_that_cannot_calibrate_are_refused(backend, tmp_path, folder):
    _, path = saved(tmp_path / "model")
    few = write_images(tmp_path / "few", PIXELS[:3])
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
