"""The line as users live it: pre-train on many classes, probe, fine-tune on few images of others.

    digits x quadrant, small, 32 pixels, 40 classes -> shards -> train -> body
    plain digits, large, 48 pixels, 10 classes, few -> shards -> probe, fine-tune, from scratch

No scan is in both sets. Positions are resampled from 4 x 4 patches to 6 x 6.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from pipeline.__main__ import main as pipeline
from pipeline.outcome import Outcome
from shards.__main__ import main as shards

pytestmark = [pytest.mark.ray, pytest.mark.slow]

# scans for the pre-training; of those after them: images of each digit to fine-tune on
SOURCE_SCANS, TRAIN_PER_DIGIT = 1000, 15
# pixels of a plain digit; those in quadrants have 16
HEIGHT = 24
SHAPE = ("--model.width", "64", "--model.depth", "3", "--model.mlp-width", "128")
SHORT = ("--workers", "1", "--crops", "center", "--record.models", "none")
PRETRAINING = ("--epochs", "24", "--optim.lr", "3e-3")
# of fine-tuning and of training from scratch
BUDGET = ("--epochs", "30", "--global-batch", "30", "--optim.lr", "1e-3")


def drawn(scan: np.ndarray, height: int, canvas: int, corner: tuple[int, int]) -> Image.Image:
    """A scan of 8 x 8 at a height in pixels, with its upper left corner at (x, y) of a canvas."""
    pixels = Image.fromarray((scan * (255 / 16)).astype("uint8"))
    image = Image.new("L", (canvas, canvas))
    image.paste(pixels.resize((height, height), Image.Resampling.BICUBIC), corner)
    return image.convert("RGB")


def write_folder(folder: Path, images: Iterable[tuple[str, int, Image.Image]]) -> None:
    """Write images (folder, class, image) as a folder of class folders."""
    for number, (split, label, image) in enumerate(images):
        path = folder / split / f"n{label:08d}" / f"{number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=95)


def quadrants(seed: int) -> Iterable[tuple[str, int, Image.Image]]:
    """Every scan of the pre-training in each quadrant, somewhere."""
    random, data = np.random.default_rng(seed), load_digits()
    for number in range(SOURCE_SCANS):
        split = "val" if number % 20 == 0 else "train"
        for quadrant in range(4):
            x, y = (16 * (quadrant >> bit & 1) + int(random.integers(-2, 3)) for bit in (0, 1))
            image = drawn(data.images[number], 16, 32, (x, y))
            yield split, 4 * int(data.target[number]) + quadrant, image


def plain(seed: int) -> Iterable[tuple[str, int, Image.Image]]:
    """The other scans, large: the first of each digit to train on, the rest to evaluate."""
    random, data = np.random.default_rng(seed), load_digits()
    order = SOURCE_SCANS + random.permutation(len(data.target) - SOURCE_SCANS)
    seen = dict.fromkeys(range(10), 0)
    for number in order.tolist():
        digit = int(data.target[number])
        seen[digit] += 1
        split = "train" if seen[digit] <= TRAIN_PER_DIGIT else "val"
        corner = tuple(int(v) for v in random.integers(0, 48 - HEIGHT + 1, 2))
        yield split, digit, drawn(data.images[number], HEIGHT, 48, corner)


def line(folder: Path, seed: int) -> dict[str, float]:
    """Top-1 on the plain digits that were held out, of each way to learn them."""
    for name, images in (("source", quadrants(seed)), ("target", plain(seed))):
        write_folder(folder / name, images)
        out = ["--out", str(folder / f"{name}-shards"), "--workers", "0"]
        assert shards(["build", str(folder / name), *out]) == 0

    def train(name: str, data: str, *settings: str) -> float:
        where = ("--name", name, "--runs-dir", str(runs), "--data.dir", str(folder / data))
        every = ("--seed", str(seed), *SHAPE, *SHORT, *settings)
        assert pipeline(["train", "demo", *where, *every]) == 0
        return Outcome.read(runs / name).protocols["center"]["top1"]

    runs, found = folder / "runs", {}
    found["body"] = train("body", "source-shards", *PRETRAINING)
    large = ("--model.image-size", "48", *BUDGET)
    found["scratch"] = train("scratch", "target-shards", *large)
    body = str(runs / "body")
    found["finetuning"] = train("finetuned", "target-shards", *large, "--init-from", body)
    probe = ["probe", body, "--data", str(folder / "target-shards"), "--model.image-size", "48"]
    assert pipeline([*probe, "--out", str(folder / "probe")]) == 0
    result = json.loads((folder / "probe/result.json").read_text())
    found["probe"] = result["protocols"]["center"]["top1"]
    head = ("--init-from", str(folder / "probe"), "--init-head", "keep")
    train("both", "target-shards", *large, *head)
    return found


@pytest.fixture(scope="module")
def found(ray_cluster, tmp_path_factory):
    """The folder of everything, and the accuracies."""
    folder = tmp_path_factory.mktemp("line")
    return folder, line(folder, seed=0)


def test_finetuning_beats_training_from_scratch_at_the_same_budget(found):
    _, top1 = found
    assert top1["finetuning"] > top1["scratch"] + 0.25


def test_linear_probing_lies_between(found):
    _, top1 = found
    assert top1["scratch"] + 0.07 < top1["probe"] < top1["finetuning"] - 0.1


def test_finetuning_of_a_probed_head_begins_where_the_probe_ended(found):
    folder, top1 = found
    first = json.loads((folder / "runs/both/metrics.jsonl").open().readline())
    assert (first["kind"], first["step"]) == ("eval", 0)
    assert first["val/top1"] == pytest.approx(top1["probe"], abs=0.004)  # two images


def test_the_probe_is_in_the_record_of_the_run_of_the_body(found):
    folder, top1 = found
    events = [json.loads(line) for line in (folder / "runs/body/events.jsonl").open()]
    metrics = [event["metrics"] for event in events if event["event"] == "evaluation"]
    assert {"probe/target-shards/linear": top1["probe"]} in metrics
