"""Evaluation against the bare forward pass of the same model, and the time to its first result.

    python benchmarks/evaluate.py [--model S/16] [--crops center ten] [--batches 20] [--rounds 3]

Both run on the same device in turns: the forward pass alone on crops that lie on the device
already, and the whole evaluation (read, decode, crop, forward pass, answers) through Ray Data. The
figure is crops per second of the one over the other; the medians of the rounds.

--batches are counted, between as many others as can be decoded ahead at either end: so as many are
ready at the last counted answer as at the first, and each counted crop pays for its decoding. A
task decodes one batch, and the buffer holds two.

The time to the first result is that from the call of evaluate_model, on a cluster that has
evaluated before, to the first answers, of a batch of one image: the start of the processes, and
hardly any computing.
"""

import argparse
import io
import json
import math
import os
import platform
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")

import numpy as np  # noqa: E402
import ray  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

from pipeline.data.dataset import Dataset  # noqa: E402
from pipeline.data.feed import NodeFeed  # noqa: E402
from pipeline.evaluation import predict  # noqa: E402
from pipeline.evaluation.config import EvaluateConfig  # noqa: E402
from pipeline.evaluation.evaluate import evaluate_model  # noqa: E402
from pipeline.evaluation.forward import Forward  # noqa: E402
from pipeline.evaluation.model import EvalModel  # noqa: E402
from pipeline.evaluation.predict import Evaluator  # noqa: E402
from pipeline.evaluation.share import EvalShare  # noqa: E402
from shards.build.pack import BuildConfig, build  # noqa: E402
from vit.config import ViTConfig  # noqa: E402
from vit.model import ViT  # noqa: E402
from vit.weights import MODEL_FILE, save_safetensors  # noqa: E402

# batches before and after the counted ones: what is decoded ahead (two in the buffer, three for the
# device, and a task on each of a few CPUs), and the answers that come one batch late
ENDS = 10
FEWEST = 10  # counted batches
DISTINCT = 64  # photographs; the others are copies with other bytes at their end


def main() -> None:
    """Measure and print a line of JSON for each protocol."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="S/16")
    parser.add_argument("--crops", nargs="+", default=["center", "ten"])
    parser.add_argument("--batches", type=int, default=20, help="counted passes, at least 10")
    parser.add_argument("--batch", type=int, default=22, help="crops of a forward pass, at most")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    if given.batches < FEWEST:
        parser.error(f"--batches {given.batches} is too few for a rate; give at least {FEWEST}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        few = photographs(Path(folder) / "few", 8)
        config = ViTConfig.named(given.model, num_classes=len(few.classes))
        model = ViT(config).eval().to(device)
        save_safetensors(Path(folder) / MODEL_FILE, model.state_dict())
        eval_model = EvalModel.open(Path(folder) / MODEL_FILE)
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        for crops in given.crops:
            settings = EvaluateConfig(
                data="",
                crops=(crops,),
                batch=given.batch,
                precision="bf16" if device.type == "cuda" else "fp32",
                classes="data",
                model=config,
            )
            images = (given.batches + 2 * ENDS) * settings.batch_images
            dataset = photographs(Path(folder) / f"many-{crops}", images)
            evaluator = Evaluator(dataset=dataset, settings=settings)
            bare, whole, first = [], [], []
            for number in range(given.rounds + 1):
                rates = (
                    forward(model, settings, given.batches),
                    evaluation(evaluator, model, given.batches),
                )
                out = Path(folder) / f"{crops}{number}"
                wait = first_result(eval_model, settings, few, out)
                if number:  # the first round warms up
                    bare.append(rates[0])
                    whole.append(rates[1])
                    first.append(wait)
            report(given, crops, device, bare, whole, first)
        ray.shutdown()


def photographs(folder: Path, count: int) -> Dataset:
    """JPEGs of the size of ImageNet's, as a shard set."""
    random, photos = np.random.default_rng(0), []
    for _ in range(min(count, DISTINCT)):
        coarse = random.integers(0, 256, (24, 32, 3), np.uint8)
        image = Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC)
        noise = random.normal(0, 12, (375, 500, 3))
        pixels = np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
        photos.append(buffer.getvalue())
    for number in range(count):
        path = folder / "images" / f"n{number % 4:08d}" / f"{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photos[number % len(photos)] + number.to_bytes(4))
    build([folder / "images"], folder / "shards", BuildConfig(val_per_class=0))
    return Dataset.open((str(folder / "shards"),), "train", 32)


def forward(model: ViT, settings: EvaluateConfig, batches: int) -> float:
    """Crops per second of the forward pass alone, in as many batches as of the evaluation."""
    function, device = Forward(model, settings), next(model.parameters()).device
    size, batch = model.config.image_size, settings.batch_images * settings.views
    images = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8, device=device)

    def run(count: int) -> float:
        before = time.perf_counter()
        for _ in range(count):
            function(images)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - before

    run(1)
    return batches * batch / run(batches)


def evaluation(evaluator: Evaluator, model: ViT, batches: int) -> float:
    """Crops per second of the whole evaluation in so many batches, of which `ENDS` are ahead."""
    size, views = evaluator.settings.batch_images, evaluator.settings.views
    predict.TASK_BYTES = size * math.prod(predict.view_of(evaluator.settings).shape)
    predict.BUFFER_GIB = 2 * predict.TASK_BYTES / 2**30
    share = EvalShare.of_spans([(0, evaluator.dataset.samples)], size)
    times = [time.perf_counter() for _ in evaluator.predictions(model, NodeFeed.alone(), share)]
    first, last = times[ENDS - 1], times[ENDS + batches - 1]
    return batches * size * views / (last - first)


def first_result(
    eval_model: EvalModel, settings: EvaluateConfig, dataset: Dataset, folder: Path
) -> float:
    """Seconds from the call of evaluate_model to the first answers, of a batch of one image."""
    before, times = time.perf_counter(), []
    one = replace(settings, batch=settings.views, compile=False)

    def progress(done: int, total: int) -> None:
        times.append(time.perf_counter() - before)

    evaluate_model(eval_model, one, dataset, folder, progress, sheet=False)
    return times[0]


def report(
    given: argparse.Namespace,
    crops: str,
    device: torch.device,
    bare: list[float],
    whole: list[float],
    first: list[float],
) -> None:
    """One line of JSON."""
    cuda = device.type == "cuda"
    line = {
        "model": given.model,
        "crops": crops,
        "device": torch.cuda.get_device_name() if cuda else f"{os.cpu_count()} CPU cores",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "forward_crops_per_s": round(statistics.median(bare), 1),
        "evaluation_crops_per_s": round(statistics.median(whole), 1),
        "ratio": round(statistics.median(w / b for w, b in zip(whole, bare, strict=True)), 3),
        "first_result_s": round(statistics.median(first), 2),
    }
    print(json.dumps(line))  # noqa: T201


if __name__ == "__main__":
    main()
