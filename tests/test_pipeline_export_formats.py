"""Each export in its own library: it opens there, and gives this project's outputs."""

import copy
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from archives import synthetic_image
from exports import crops_of, export, logits_of, made_run, photographs
from libraries import library, torchvision_imports
from PIL import Image

from pipeline.evaluation.model import EvalModel
from pipeline.export import onnx_graph
from vit.batch import normalise
from vit.config import ImageConfig
from vit.images import eval_view
from vit.model import ViT
from vit.weights import load_weights, read_weights

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGENET = dict(images__mean=(0.485, 0.456, 0.406), images__std=(0.229, 0.224, 0.225))
PILLOW = dict(images__eval_interpolation="bicubic", images__crop_pct=0.9, **IMAGENET)
MODELS = {
    "token": dict(),
    "mean": dict(model__pool="mean"),
    "map": dict(model__pool="map", model__gelu="tanh"),
    "norm after the mean": dict(model__pool="mean", model__fc_norm=True),
    "registers, layer scale": dict(
        model__registers=2, model__class_position=False, model__layer_scale=0.1
    ),
    "no biases, norm of queries": dict(model__qkv_bias=False, model__qk_norm=True),
}


def same(found, expected):
    """Outputs that differ by no more than float32 rounds."""
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def same_weights(folder: Path, model: ViT):
    """Whether a file or folder holds the weights of a model, bit by bit."""
    read = ViT(model.config)
    load_weights(read, folder)
    state = model.state_dict()
    return all(torch.equal(tensor, state[name]) for name, tensor in read.state_dict().items())


def ours(path: Path, model: ViT):
    """Crops of some photographs, and the logits of the model on them."""
    images = EvalModel.open(path).images
    crops = crops_of(photographs(), model, images)
    return crops, logits_of(model, crops, images)


def usage_of(folder: Path) -> str:
    """The Python code of a model card."""
    return re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]


def run_usage(folder: Path, monkeypatch, pixels: np.ndarray, code: str | None = None) -> dict:
    """Run the code of a card in its folder, on an image; its variables."""
    Image.fromarray(pixels).save(folder / "image.png")
    monkeypatch.chdir(folder)
    variables: dict = {}
    code = code or usage_of(folder)
    exec(code.replace("image.jpg", "image.png"), variables)
    return variables


# --- timm ---


@pytest.mark.parametrize("case", MODELS)
def test_timm_creates_the_model_from_the_folder(case, tmp_path, caplog):
    timm = library("timm")
    path, model = made_run(tmp_path, **PILLOW, **MODELS[case])
    assert export(path, tmp_path / "out", "--to", "timm") == 0
    assert "in timm " in caplog.text
    theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    crops, expected = ours(path, model)
    with torch.no_grad():
        same(theirs(normalise(crops, EvalModel.open(path).images)), expected)
    assert same_weights(tmp_path / "out", model)


def test_an_epsilon_that_timm_cannot_be_told_is_found_by_the_check(tmp_path, capsys):
    library("timm")
    path, _ = made_run(tmp_path, model__norm_eps=1e-3)
    assert export(path, tmp_path / "out", "--to", "timm") == 1
    assert "computes something else than the checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_timm_reads_the_preprocessing_and_the_names_of_the_classes(tmp_path):
    timm = library("timm")
    path, model = made_run(tmp_path, **PILLOW)
    assert export(path, tmp_path / "out", "--to", "timm") == 0
    theirs = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert timm.data.resolve_model_data_config(theirs) == {
        "input_size": (3, 32, 32),
        "interpolation": "bicubic",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "crop_pct": 0.9,
        "crop_mode": "center",
    }
    assert theirs.pretrained_cfg["label_names"][3] == "n00000003"
    assert theirs.num_classes == 10
    fewer = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, num_classes=3)
    assert fewer(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
    assert torch.equal(fewer.norm.weight, model.norm.weight)


@pytest.mark.parametrize("method", ["area", "linear"])
def test_a_resize_that_timm_lacks_is_said_to_be_the_nearest(method, tmp_path):
    path, _ = made_run(tmp_path, images__eval_interpolation=method)
    assert export(path, tmp_path / "out", "--to", "timm") == 0
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    assert settings["pretrained_cfg"]["interpolation"] == "bilinear"
    assert "Other libraries do not have this resize" in (tmp_path / "out/README.md").read_text()
    assert EvalModel.open(tmp_path / "out").images.eval_interpolation == method


def test_the_code_for_timm_runs(tmp_path, monkeypatch):
    library("timm")
    path, model = made_run(tmp_path, **PILLOW)
    assert export(path, tmp_path / "out", "--to", "timm") == 0
    code = usage_of(tmp_path / "out")
    if not torchvision_imports():  # timm's transforms are torchvision's
        code = code.partition("\n\ncfg")[0]
    found = run_usage(tmp_path / "out", monkeypatch, photographs(1)[0], code)
    assert torch.equal(found["model"].head.weight, model.head.weight)
    if "logits" in found:
        crops, expected = ours(path, model)
        same(found["logits"], expected[:1])


# --- transformers ---


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("ViTForImageClassification", dict()),
        ("ViTForImageClassification", dict(model__gelu="tanh", model__norm_eps=1e-12)),
        ("Dinov2ForImageClassification", dict(model__layer_scale=0.1)),
        (
            "Dinov2WithRegistersForImageClassification",
            MODELS["registers, layer scale"],
        ),
    ],
)
def test_transformers_opens_the_folder(kind, settings, tmp_path, caplog):
    transformers = library("transformers")
    path, model = made_run(tmp_path, **PILLOW, **settings)
    assert export(path, tmp_path / "out", "--to", "transformers") == 0
    assert "in transformers " in caplog.text
    theirs = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
    assert type(theirs).__name__ == kind
    crops, expected = ours(path, model)
    with torch.no_grad():
        same(theirs(normalise(crops, EvalModel.open(path).images)).logits, expected)
    assert theirs.config.id2label[3] == "digit 3" and theirs.config.label2id["digit 3"] == 3
    read = read_weights(tmp_path / "out")
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in read.items())


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("ViT", dict(images__eval_resize="squash", images__crop_pct=1.0)),
        ("Bit", dict(images__eval_resize="squash", images__crop_pct=0.8)),
        ("Bit", dict(images__crop_pct=1.0)),
        ("Bit", dict(images__crop_pct=0.875)),
    ],
)
@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
def test_its_image_processor_gives_the_pixels_of_this_project(kind, settings, method, tmp_path):
    transformers = library("transformers")
    path, model = made_run(tmp_path, images__eval_interpolation=method, **IMAGENET, **settings)
    assert export(path, tmp_path / "out", "--to", "transformers") == 0
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert type(processor).__name__.startswith(f"{kind}ImageProcessor")
    images = EvalModel.open(path).images
    # sides that are not rounded: this project rounds the longer one, and the others cut it off
    for width, height in ((108, 72), (96, 144)):
        pixels = np.asarray(synthetic_image(width, width, height))
        (found,) = processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
        expected = normalise(torch.from_numpy(eval_view(pixels, images, 32).copy())[None], images)
        torch.testing.assert_close(found, expected[0], rtol=0, atol=1e-5)


def test_transformers_opens_a_body(tmp_path):
    library("transformers")
    path, model = made_run(tmp_path, **PILLOW, model__pre_logits=True)
    assert export(path, tmp_path / "out", "--to", "transformers", "--head", "drop") == 0
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    assert settings["architectures"] == ["ViTModel"]


def test_the_code_for_transformers_runs(tmp_path, monkeypatch):
    library("transformers")
    path, model = made_run(tmp_path, **PILLOW)
    assert export(path, tmp_path / "out", "--to", "transformers") == 0
    found = run_usage(tmp_path / "out", monkeypatch, photographs(1)[0])
    _, expected = ours(path, model)
    same(found["logits"], expected[:1])
    assert found["name"] == f"digit {int(expected[0].argmax())}"


# --- Google's .npz ---


@pytest.mark.parametrize("layout", ["vit", "big_vision"])
@pytest.mark.parametrize("pool", ["token", "mean", "map"])
def test_npz_holds_the_weights_of_the_model(layout, pool, tmp_path):
    path, model = made_run(tmp_path, model__gelu="tanh", model__pool=pool)
    flags = ("--to", "npz", "--layout", layout)
    assert export(path, tmp_path / "out", *flags) == 0
    expected = copy.deepcopy(model)
    if layout == "big_vision" and pool == "token":  # which adds the position of the token to it
        with torch.no_grad():
            expected.cls_token += expected.pos_embed[:, :1]
            expected.pos_embed[:, :1] = 0
    assert same_weights(tmp_path / "out" / "model.npz", expected)
    read = ViT(model.config).eval()
    load_weights(read, tmp_path / "out" / "model.npz")
    crops, expected = ours(path, model)
    same(logits_of(read, crops, EvalModel.open(path).images), expected)


@pytest.mark.parametrize("layout", ["vit", "big_vision"])
def test_timms_reader_of_npz_gives_the_same_logits(layout, tmp_path):
    vision_transformer = library("timm.models.vision_transformer")
    path, model = made_run(tmp_path, model__gelu="tanh", model__pool="token")
    assert export(path, tmp_path / "out", "--to", "npz", "--layout", layout) == 0
    theirs = vision_transformer.VisionTransformer(
        img_size=32,
        patch_size=8,
        embed_dim=16,
        depth=2,
        num_heads=2,
        mlp_ratio=2,
        num_classes=10,
        act_layer="gelu_tanh",
        no_embed_class=layout == "big_vision",
    ).eval()
    theirs.load_pretrained(str(tmp_path / "out" / "model.npz"))
    crops, expected = ours(path, model)
    with torch.no_grad():
        same(theirs(normalise(crops, EvalModel.open(path).images)), expected)


# --- graphs ---

GRAPHS = [("onnx", "model.onnx"), ("torch", "model.pt2")]


def computed(to: str, file: Path, images: torch.Tensor) -> torch.Tensor:
    """The outputs of a graph in its own library."""
    if to == "torch":
        with torch.no_grad():
            return torch.export.load(file).module()(images)
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, {"images": images.contiguous().numpy()})
    return torch.from_numpy(outputs)


@pytest.mark.parametrize("preprocess", [False, True], ids=["normalised", "uint8"])
@pytest.mark.parametrize(("to", "file"), GRAPHS)
def test_a_graph_takes_batches_of_any_size_and_the_code_of_its_card_runs(
    to, file, preprocess, tmp_path, monkeypatch, caplog
):
    path, model = made_run(tmp_path, **PILLOW)
    flags = ("--to", to, *(["--preprocess"] if preprocess else []))
    assert export(path, tmp_path / "out", *flags) == 0
    assert "top-1 equal 16/16" in caplog.text
    crops, expected = ours(path, model)
    images = crops if preprocess else normalise(crops, EvalModel.open(path).images)
    for first, last in ((0, 1), (0, 5), (1, 4)):
        same(computed(to, tmp_path / "out" / file, images[first:last]), expected[first:last])
    found = run_usage(tmp_path / "out", monkeypatch, photographs(1)[0])
    same(torch.as_tensor(found["logits"]), expected[:1])
    assert found["name"].split()[0] == f"n{int(expected[0].argmax()):08d}"


def constants(to: str, file: Path) -> list[torch.Tensor]:
    """The tensors that a graph holds."""
    if to == "torch":
        return list(torch.export.load(file).state_dict.values())
    onnx = pytest.importorskip("onnx", reason="needs the extra 'onnx'")
    tensors = onnx.load(file).graph.initializer
    return [torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy()) for tensor in tensors]


QUERY = {"attn_pool.latent", "attn_pool.q.weight", "attn_pool.q.bias"}
VARIANTS = ["mean", "map", "registers, layer scale"]


@pytest.mark.parametrize(
    "case", ["token", *(pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS)]
)
@pytest.mark.parametrize(("to", "file"), GRAPHS)
def test_a_graph_holds_every_variant_of_the_model_and_its_weights(to, file, case, tmp_path):
    path, model = made_run(tmp_path, **PILLOW, **MODELS[case])
    assert export(path, tmp_path / "out", "--to", to) == 0
    crops, expected = ours(path, model)
    images = normalise(crops, EvalModel.open(path).images)
    same(computed(to, tmp_path / "out" / file, images), expected)
    found = [each for each in constants(to, tmp_path / "out" / file) if each.is_floating_point()]
    found += [each.T for each in found if each.ndim == 2]  # ONNX multiplies with transposed ones
    missing = {
        name
        for name, weight in model.state_dict().items()
        if not any(torch.equal(each, weight) for each in found)
    }
    # what depends on no image is computed when the graph is written
    assert missing == (QUERY if (to, case) == ("onnx", "map") else set())


@pytest.mark.parametrize(("to", "file"), GRAPHS)
def test_a_graph_without_the_head_gives_features(to, file, tmp_path):
    path, model = made_run(tmp_path, **PILLOW)
    assert export(path, tmp_path / "out", "--to", to, "--head", "drop") == 0
    crops, _ = ours(path, model)
    images = normalise(crops, EvalModel.open(path).images)
    with torch.no_grad():
        same(computed(to, tmp_path / "out" / file, images), model.features(images))


def test_an_onnx_file_is_valid_and_names_its_classes(tmp_path):
    onnx = pytest.importorskip("onnx", reason="needs the extra 'onnx'")
    path, _ = made_run(tmp_path)
    assert export(path, tmp_path / "out", "--to", "onnx") == 0
    file = tmp_path / "out" / "model.onnx"
    onnx.checker.check_model(str(file), full_check=True)
    graph = onnx.load(file)
    known = {prop.key: json.loads(prop.value) for prop in graph.metadata_props}
    assert known["classes"][3] == "n00000003" and known["normalises"] is False
    assert known["preparation"]["mean"] == [0.5, 0.5, 0.5]
    (images,) = graph.graph.input
    sides = images.type.tensor_type.shape.dim
    assert sides[0].dim_param == "batch" and [side.dim_value for side in sides[1:]] == [3, 32, 32]
    assert [output.name for output in graph.graph.output] == ["logits"]


def test_weights_that_protobuf_cannot_hold_lie_beside_the_graph(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_graph, "MOST_BYTES", 1000)
    path, model = made_run(tmp_path)
    assert export(path, tmp_path / "out", "--to", "onnx") == 0
    assert (tmp_path / "out" / "model.onnx.data").stat().st_size > 10_000
    (tmp_path / "out").rename(tmp_path / "moved")
    crops, expected = ours(path, model)
    images = normalise(crops, EvalModel.open(path).images)
    same(computed("onnx", tmp_path / "moved" / "model.onnx", images), expected)


def test_a_program_of_torch_runs_without_this_projects_code(tmp_path):
    path, model = made_run(tmp_path)
    assert export(path, tmp_path / "out", "--to", "torch", "--preprocess") == 0
    crops, expected = ours(path, model)
    np.save(tmp_path / "crops.npy", crops.numpy())
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('vit', 'pipeline', 'support', 'shards')))\n"
        "import numpy as np, torch\n"
        "model = torch.export.load('out/model.pt2').module()\n"
        "np.save('logits.npy', model(torch.from_numpy(np.load('crops.npy'))).detach().numpy())\n"
    )
    command = [sys.executable, "-I", "-c", code]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=300)
    same(torch.from_numpy(np.load(tmp_path / "logits.npy")), expected)


# --- int8 ---


@pytest.mark.compile
@pytest.mark.parametrize("scheme", ["static", "weight"])
def test_int8_is_calibrated_checked_and_opened(scheme, digits, tmp_path, caplog, monkeypatch):
    quant = pytest.importorskip("vit.quant", reason="needs the extra 'quant'")
    if reason := quant.refusal(f"int8-{scheme}"):
        pytest.skip(reason)
    path, model = made_run(tmp_path, data__dir=str(digits))
    assert export(path, tmp_path / "out", "--to", "int8", "--scheme", scheme) == 0
    assert f"16 images ({digits}, split val) in this project" in caplog.text
    loaded = quant.load_quantised(tmp_path / "out" / "model.pt")
    loaded.compiled = False
    crops, expected = ours(path, model)
    found = loaded(normalise(crops, ImageConfig()))
    assert (found - expected).norm() < 0.2 * expected.norm()
    code = usage_of(tmp_path / "out").replace("\n\nimage", "\nmodel.compiled = False\nimage", 1)
    run_usage(tmp_path / "out", monkeypatch, photographs(1)[0], code)
