"""The program that classifies images without Python, and the command that does it with Python."""

import json
import subprocess
import sys

import pytest
import torch
from image_files import encoded, photo
from native_backends import saved

from vit.batch import normalise
from vit.config import ImageConfig
from vit.images import decode, eval_view
from vit.loss import LINKS
from vit.native.build import PROGRAM, built


@pytest.fixture(scope="module")
def program(backend):
    """The program of a back end: takes words, returns its status and its lines."""
    path = built(backend).with_name(PROGRAM)

    def run(*words):
        result = subprocess.run([path, *map(str, words)], capture_output=True, text=True)
        return result.returncode, (result.stdout + result.stderr).splitlines()

    return run


@pytest.fixture(params=["program", "command"])
def classifier(request, backend, program):
    """The program, and the command that takes the same words."""
    if request.param == "program":
        return program

    def run(*words):
        command = [sys.executable, "-m", "vit.native", "predict", "--backend", backend]
        result = subprocess.run([*command, *map(str, words)], capture_output=True, text=True)
        return result.returncode, (result.stdout + result.stderr).splitlines()

    return run


@pytest.mark.parametrize("link", ["softmax", "sigmoid"])
def test_the_classes_are_those_that_the_pytorch_model_names(classifier, tmp_path, link):
    images = ImageConfig(eval_interpolation="bicubic", mean=(0.4, 0.5, 0.6))
    model, folder = saved(tmp_path / "model", images=images)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "loss.name": link}))
    data = {"a.ppm": encoded(photo(), "PPM"), "b.ppm": encoded(photo(50, 40, seed=1), "PPM")}
    for name, each in data.items():
        (tmp_path / name).write_bytes(each)
    status, lines = classifier("--top", 3, "--threads", 1, folder, *(tmp_path / n for n in data))
    assert status == 0 and lines.pop() == "classified  2 of 2 images"
    for name, each in data.items():
        assert lines.pop(0) == str(tmp_path / name)
        pixels = eval_view(decode(each), images, model.config.image_size)
        with torch.no_grad():
            logits = model(normalise(torch.from_numpy(pixels.copy())[None], images))
        shares, classes = LINKS[link].probabilities(logits)[0].topk(3)
        for share, number in zip(shares, classes, strict=True):
            shown, wnid = lines.pop(0).split()
            assert wnid == f"n{number:08}" and abs(float(shown) - share) < 2e-4


def test_a_folder_that_says_nothing_of_images_is_refused(classifier, tmp_path):
    _, folder = saved(tmp_path / "model")
    (folder / "config.json").write_text('{"model.heads": 3}')
    (tmp_path / "a.ppm").write_bytes(encoded(photo(), "PPM"))
    status, lines = classifier(folder, tmp_path / "a.ppm")
    assert status == 2 and "states no preprocessing of images" in lines[-1]


def test_a_file_of_weights_alone_has_numbers_for_classes(program, tmp_path):
    _, folder = saved(tmp_path / "model", width=128, heads=2)
    alone = tmp_path / "alone.safetensors"
    (folder / "model.safetensors").rename(alone)
    (tmp_path / "a.ppm").write_bytes(encoded(photo(), "PPM"))
    status, lines = program(alone, tmp_path / "a.ppm")
    assert status == 0 and sorted(line.split()[1] for line in lines[1:6]) < ["9"]


def test_images_that_cannot_be_read_are_named_and_fatal_only_if_all_are(classifier, tmp_path):
    _, folder = saved(tmp_path / "model")
    good, bad = tmp_path / "good.ppm", tmp_path / "bad.ppm"
    good.write_bytes(encoded(photo(), "PPM"))
    bad.write_bytes(good.read_bytes()[:99])
    status, lines = classifier(folder, bad, tmp_path / "none.ppm", good)
    assert status == 0 and lines[-1] == "classified  1 of 3 images"
    assert lines[0] == str(bad) and lines[1].startswith("  cannot be read: ")
    assert classifier(folder, bad)[0] == 2


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ((), "give a CHECKPOINT and at least one IMAGE"),
        (("--top", "0", "a", "b"), "--top is 0; give a number of at least 1"),
        (("a", "b", "--top"), "--top lacks its value"),
        (("--size", "7", "a", "b"), "unknown option --size"),
        (
            ("--precision", "fp4", "a", "b"),
            "precision is fp4; known: float32, tf32, bfloat16, int8, float8",
        ),
        (("nowhere", "b"), "nowhere is not there, or is no file"),
    ],
)
def test_bad_arguments_are_refused_with_a_reason(program, words, reason):
    status, lines = program(*words)
    assert status == 2 and lines[-1] == f"classify: {reason}"


def test_the_help_names_every_option(program):
    status, lines = program("--help")
    assert status == 0
    assert all(name in "".join(lines) for name in ("--top", "--precision", "--threads"))
