"""The logged model: whole, without pickles, the same answers as `predict`, and it is served."""

import base64
import csv
import io
import json
import resource
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import mlflow.pyfunc
import mlflow.pytorch
import numpy as np
import pandas as pd
import pytest
import torch
from checkpoints import write
from mlflow.models import Model
from mlflow_server import clean_environment, free_port
from PIL import Image

import vit.graph
from pipeline.__main__ import main
from pipeline.evaluation.model import EvalModel
from pipeline.settings.presets import find_preset
from pipeline.tracking import image_classifier, mlflow_model
from pipeline.tracking.mlflow_model import Refused, save_model
from shards.dataset.classes import class_list
from vit.images import decode
from vit.loss import LINKS
from vit.model import ViT

CLASSES = class_list("1k")[:10]
IMAGES = {
    "images.eval_interpolation": "bicubic",
    "images.crop_pct": 0.8,
    "images.mean": [0.4, 0.5, 0.6],
    "images.std": [0.2, 0.3, 0.4],
}


def checkpoint_in(folder: Path, **settings) -> Path:
    """A checkpoint of a small model that tells images apart."""
    small = {"image_size": 32, "depth": 1, "width": 32, "mlp_width": 32, "num_classes": 10}
    small = {f"model.{name}": value for name, value in small.items()}
    config = find_preset("demo").replace({**small, **IMAGES, **settings})
    torch.manual_seed(0)
    model = ViT(config.model)
    torch.nn.init.normal_(model.head.weight, std=2.0)
    classes = CLASSES[: config.model.num_classes]
    about = {"state": {}, "config": config, "classes": classes, "metrics": {"val/top1": 0.5}}
    return write(folder / "checkpoints", 10, model=model.state_dict(), **about)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return checkpoint_in(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture(scope="module")
def saved(checkpoint, tmp_path_factory):
    """The folder of the model."""
    folder = tmp_path_factory.mktemp("mlflow") / "model"
    save_model(checkpoint, folder, Model())
    return folder


def jpeg(number: int, width: int = 90, height: int = 60) -> bytes:
    coarse = np.random.default_rng(number).integers(0, 256, (5, 6, 3), np.uint8)
    buffer = io.BytesIO()
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """JPEGs of several shapes in a folder, the last of them broken."""
    folder = tmp_path_factory.mktemp("photos")
    for number, (width, height) in enumerate([(90, 60), (60, 90), (32, 32), (20, 30)]):
        (folder / f"{number}.jpg").write_bytes(jpeg(number, width, height))
    (folder / "4.jpg").write_bytes(jpeg(4)[:300])
    return folder


@pytest.fixture(scope="module")
def predicted(checkpoint, photos, tmp_path_factory):
    """What the command gives for the photos."""
    out = tmp_path_factory.mktemp("table") / "out.csv"
    assert main(["predict", str(checkpoint), str(photos), "--out", str(out)]) == 0
    with out.open(newline="") as file:
        return list(csv.DictReader(file))


def assert_same(found: dict, row: dict[str, str]) -> None:
    """A row of the model is that of the command."""
    assert bool(found["error"]) == bool(row["error"])
    for place in range(1, 6):
        for name in ("class", "name"):
            assert (found[f"{name}{place}"] or "") == row[f"{name}{place}"]
        if not row["error"]:
            assert found[f"p{place}"] == pytest.approx(float(row[f"p{place}"]), rel=1e-4)


PROGRAM = """
import base64, json, sys
from pathlib import Path

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"pipeline", "shards", "support", "tune", "vit"}:
            raise ImportError(f"{name} is not here")

sys.meta_path.insert(0, Blocked())
import numpy as np
import mlflow.pyfunc, mlflow.pytorch
import pandas as pd
import torch

folder, photos = sys.argv[1], sorted(Path(sys.argv[2]).glob("*.jpg"))
model = mlflow.pyfunc.load_model(folder)
files = [path.read_bytes() for path in photos]
cells = {
    "bytes": files,
    "base64": [base64.b64encode(data).decode() for data in files],
    "lines": [base64.encodebytes(data) for data in files],
    "arrays": list(np.load(sys.argv[3], allow_pickle=False)),
}
rows = {
    name: json.loads(model.predict(pd.DataFrame({"image": column})).to_json(orient="records"))
    for name, column in cells.items()
}
wrong = [5, None, "not base64!", np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)]
wrong += [np.zeros((0, 4, 3), np.uint8)]
rows["wrong"] = json.loads(model.predict(pd.DataFrame({"image": wrong})).to_json(orient="records"))
graph = mlflow.pytorch.load_model(folder)
print(json.dumps({**rows, "graph": list(graph(torch.zeros(3, 3, 32, 32)).shape)}))
"""


def test_the_model_answers_as_the_command_does_without_this_project(
    saved, photos, predicted, tmp_path
):
    pixels = np.stack([decode(jpeg(number)) for number in range(3)])
    np.save(tmp_path / "pixels.npy", pixels)
    arguments = [str(saved), str(photos), str(tmp_path / "pixels.npy")]
    result = subprocess.run(
        [sys.executable, "-I", "-c", PROGRAM, *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=clean_environment() | {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    for name in ("bytes", "base64", "lines"):
        for row, expected in zip(found[name], predicted, strict=True):
            assert_same(row, expected)
    assert found["arrays"][0] == found["bytes"][0]  # the first photo, decoded
    reasons = ["int is not an image", "NoneType is not", "is not base64", "(4, 4) must be uint8"]
    reasons += ["float32 (4, 4, 3) must be", "(0, 4, 3) must be"]
    for row, reason in zip(found["wrong"], reasons, strict=True):
        assert reason in row["error"] and row["class1"] is None and row["p1"] is None
    assert found["graph"] == [3, 10]


def test_probabilities_are_those_of_the_link_of_the_loss(tmp_path):
    checkpoint = checkpoint_in(tmp_path / "run", **{"loss.name": "sigmoid"})
    save_model(checkpoint, tmp_path / "model", Model())
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    row = model.predict({"image": [jpeg(0)]}).iloc[0]
    small = Image.fromarray(decode(jpeg(0))).resize((60, 40), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(small.crop((14, 4, 46, 36)))).double() / 255
    pixels = (pixels - torch.tensor(IMAGES["images.mean"])) / torch.tensor(IMAGES["images.std"])
    eval_model = EvalModel.open(checkpoint)
    with torch.no_grad():
        logits = eval_model.load(eval_model.model)(pixels.permute(2, 0, 1)[None].float())[0]
    assert row["class1"] == CLASSES[logits.argmax()]
    assert row["p1"] == pytest.approx(1 / (1 + np.exp(-logits.max().item())), rel=1e-4)
    assert image_classifier.LINKS.keys() == LINKS.keys()


@pytest.mark.parametrize("interpolation", ["area", "linear", "bilinear", "bicubic"])
@pytest.mark.parametrize("resize", ["short", "squash"])
def test_an_image_that_cannot_be_resized_leaves_the_others_their_classes(
    resize, interpolation, tmp_path
):
    settings = {"images.eval_resize": resize, "images.eval_interpolation": interpolation}
    save_model(checkpoint_in(tmp_path / "run", **settings), tmp_path / "model", Model())
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    odd = [np.zeros(shape, np.uint8) for shape in ((2, 40_000, 3), (1, 200_000, 3), (0, 9, 3))]
    table = model.predict(pd.DataFrame({"image": [*odd, jpeg(0)]}))
    rows = json.loads(table.to_json(orient="records"))
    assert rows[3]["class1"] in CLASSES and not rows[3]["error"]
    assert rows[2]["error"] and all(bool(row["class1"]) != bool(row["error"]) for row in rows)


def test_a_head_of_two_classes_gives_both(tmp_path):
    checkpoint = checkpoint_in(tmp_path / "run", **{"model.num_classes": 2})
    save_model(checkpoint, tmp_path / "model", Model())
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    row = model.predict({"image": [jpeg(0)]}).iloc[0]
    assert list(row.index) == ["class1", "name1", "p1", "class2", "name2", "p2", "error"]
    assert {row["class1"], row["class2"]} == set(CLASSES[:2])
    assert row["p1"] + row["p2"] == pytest.approx(1, abs=1e-5)
    assert model.metadata.get_output_schema().input_names() == list(row.index)


def test_the_model_says_what_goes_in_and_out_and_how_images_are_prepared(saved):
    about = Model.load(str(saved))
    assert about.flavors.keys() == {"python_function", "pytorch"}
    (image,) = about.get_input_schema().to_dict()
    assert (image["name"], image["type"]) == ("image", "binary")
    assert about.get_output_schema().input_names()[:3] == ["class1", "name1", "p1"]
    assert about.metadata == {
        "step": 10,
        "preprocessing": {
            "size": 32,
            "resize_to": 40,
            "crop_pct": 0.8,
            "crop_mode": "center",
            "interpolation": "bicubic",
            "mean": [0.4, 0.5, 0.6],
            "std": [0.2, 0.3, 0.4],
        },
    }
    head = json.loads((saved / "artifacts" / "classes.json").read_text())
    assert head["classes"][0] == ["n01440764", "tench, Tinca tinca"]
    assert [wnid for wnid, _ in head["classes"]] == list(CLASSES)
    required = (saved / "requirements.txt").read_text()
    for name in ("torch", "simplejpeg", "opencv-python-headless", "mlflow"):
        assert f"{name}==" in required
    assert "vit-pretraining" not in required
    files = [path for path in saved.rglob("*") if path.is_file()]
    assert not [path.name for path in files if path.suffix in (".pkl", ".pth")]
    weights = [saved / "artifacts/graph/model.pt2", saved / "checkpoint/model.safetensors"]
    least, most = (sum(path.stat().st_size for path in each) for each in (weights, files))
    assert least < about.model_size_bytes <= most


def test_the_input_example_is_an_image_that_the_model_takes(saved):
    model = mlflow.pyfunc.load_model(str(saved))
    example = model.input_example
    assert decode(example["image"][0]).shape == (32, 32, 3)
    row = model.predict(example).iloc[0]
    assert row["class1"] in CLASSES and row["error"] == ""


def test_the_graph_does_not_name_folders_of_this_machine(saved):
    content = (saved / "artifacts" / "graph" / "model.pt2").read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        text = b"".join(archive.read(name) for name in archive.namelist())
    assert str(Path(vit.graph.__file__).parent).encode() not in text


def test_fine_tuning_can_start_from_the_model(saved, checkpoint):
    copy, original = EvalModel.open(saved / "checkpoint"), EvalModel.open(checkpoint)
    assert copy.sha256() == original.sha256()
    for name in ("model", "images", "loss", "classes", "step"):
        assert getattr(copy, name) == getattr(original, name)
    names = {path.name for path in (saved / "checkpoint").iterdir()}
    assert names == {"model.safetensors", "config.json", "meta.json"}


def test_a_model_that_has_no_graph_is_refused(checkpoint, tmp_path, monkeypatch):
    def export(*arguments, **options):
        raise RuntimeError("data-dependent control flow")

    monkeypatch.setattr(mlflow_model.torch.export, "export", export)
    with pytest.raises(Refused, match="cannot be written as a graph: data-dependent"):
        save_model(checkpoint, tmp_path / "model", Model())
    assert not (tmp_path / "model").exists()


def test_a_model_waits_for_memory_and_for_room_on_the_disk(checkpoint, tmp_path, monkeypatch):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError):
            save_model(checkpoint, tmp_path / "model", Model())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    def export(*arguments, **options):
        torch.empty(1 << 50)

    monkeypatch.setattr(mlflow_model.torch.export, "export", export)
    with pytest.raises(OSError, match="can't allocate memory"):
        save_model(checkpoint, tmp_path / "model", Model())


@pytest.mark.server
def test_mlflow_serves_the_model_and_answers_a_jpeg(saved, photos, predicted, tmp_path):
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local"]
    command += ["--model-uri", str(saved), "--port", str(port), "--workers", "1"]
    # its server is started by name
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            stdout=log,
            stderr=log,
            env=clean_environment() | {"PATH": path, "PYTHONPATH": ""},
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", process, tmp_path / "log")
        texts = [base64.b64encode(path.read_bytes()).decode() for path in sorted(photos.iterdir())]
        for body in (
            {"dataframe_split": {"columns": ["image"], "data": [[text] for text in texts]}},
            {"dataframe_records": [{"image": text} for text in texts]},
            {"inputs": texts},
            {"inputs": {"image": texts}},
            {"instances": texts},
        ):
            for row, expected in zip(answer(port, body), predicted, strict=True):
                assert_same(row, expected)
    finally:
        process.terminate()
        process.wait(60)


def answer(port: int, body: dict) -> list[dict]:
    """What the server predicts."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.loads(response.read())["predictions"]


def wait_for(address: str, process: subprocess.Popen, log: Path) -> None:
    """Wait until a server answers."""
    deadline = time.monotonic() + 180
    while True:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
