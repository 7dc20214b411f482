"""What a run starts from: weights of any program give their outputs, and misfits are refused."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from checkpoints import CONFIG, write
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_vit_dialects import CASES, ORIGINALS, STORED, make

from pipeline.checkpoint.run_folder import RunFolder
from pipeline.initial_weights import fetched, sized
from pipeline.settings.config import TrainConfig
from pipeline.settings.presets import PRESETS
from pipeline.train.initial import InitialWeights
from pipeline.train.initial_copy import InitialCopy
from pipeline.train.state import State
from shards.dataset.classes import class_list
from vit.config import ViTConfig
from vit.model import ViT
from vit.weights import read_weights, save_npz, save_weights

CPU = torch.device("cpu")
CLASSES = tuple(f"n{number:08d}" for number in range(5))
TINY = {"model.image_size": 12, "model.heads": 2, "precision": "fp32", "compile": False}

pytestmark = pytest.mark.usefixtures("one_thread")


def stored(name, case, folder):
    """Weights of a library in a folder; its images and logits."""
    start = f"{name}/{case}|"
    with safe_open(STORED, "pt") as file:
        keys = [key for key in file.keys() if key.startswith(start)]  # noqa: SIM118
        tensors = {key.removeprefix(start): file.get_tensor(key).float() for key in keys}
        images, settings = file.get_tensor("images"), file.metadata().get(f"{name}/{case}")
    if settings:
        (folder / "config.json").write_text(settings)
    logits = tensors.pop("logits")
    save_file(tensors, folder / "model.safetensors")
    return folder, images, logits


def original(case, folder):
    """Weights of the original code in a file; its images and output."""
    tensors = {k: t.float() for k, t in load_file(ORIGINALS).items() if k.startswith(f"{case}|")}
    tensors = {key.partition("|")[2]: tensor for key, tensor in tensors.items()}
    images, output = tensors.pop("images"), tensors.pop("output")
    torch.save({"model": tensors}, folder / "a.pth")
    return folder / "a.pth", images, output


def npz(layout, folder):
    """Weights in Google's file; images, and what the model gives that they were written from."""
    model = make(gelu="tanh")
    save_npz(folder / "a.npz", model, layout)
    images = torch.randn(3, 3, 12, 12)
    with torch.no_grad():
        return folder / "a.npz", images, model(images)


def begun(path, classes, **settings):
    """The state of a run of the preset `finetune` before its first step, and its weights."""
    config = sized(PRESETS["finetune"], str(path), "runs")
    config = config.replace({**TINY, "model.num_classes": len(classes), **settings})
    weights = InitialWeights.of(fetched(config.init_from, "runs"), config, classes)
    state = State(config, CPU, None, 1, weights=weights.on_node, rows=weights.rows)
    state.model.eval()
    return state, weights


FOREIGN = {
    **{f"{name} {case}": (stored, name, case) for name, case in CASES},
    **{case: (original, case) for case in ("deit3", "miil", "dinov2", "dinov2-reg")},
    **{f"npz {layout}": (npz, layout) for layout in ("vit", "big_vision")},
}


@pytest.mark.parametrize("case", FOREIGN)
def test_foreign_weights_begin_with_exactly_their_outputs(case, tmp_path, alone):
    maker, *which = FOREIGN[case]
    path, images, outputs = maker(*which, tmp_path)
    close = dict(atol=1e-5, rtol=1e-5)
    state, weights = begun(path, CLASSES)
    with torch.no_grad():
        features, zeros = state.model.features(images), state.model(images)
    assert not zeros.any()  # a head of zeros
    if case.startswith("dinov2"):  # its output is the features
        torch.testing.assert_close(features, outputs, **close)
        return
    tensors = read_weights(path)
    head = tensors["head.weight"], tensors["head.bias"]
    torch.testing.assert_close(F.linear(features, *head), outputs, **close)
    assert "head of 5 classes dropped" in str(weights.loaded)
    state, weights = begun(path, CLASSES, init_head="keep")
    with torch.no_grad():
        torch.testing.assert_close(state.model(images), outputs, **close)
    assert not weights.loaded.new and not weights.loaded.dropped


def test_a_head_of_21843_classes_begins_as_that_of_imagenet_1k(tmp_path, alone):
    wide, narrow = class_list("goog"), class_list("1k")
    model = make(num_classes=len(wide))
    save_weights(tmp_path / "a.safetensors", model)
    state, weights = begun(tmp_path / "a.safetensors", narrow, init_head="map")
    images = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        ours, theirs = state.model(images), model(images)
    lacking = [wnid for wnid in narrow if wnid not in wide]
    for number, wnid in enumerate(narrow):
        if wnid not in lacking:
            torch.testing.assert_close(ours[:, number], theirs[:, wide.index(wnid)])
    kept = 1000 - len(lacking)
    zero = f"; {len(lacking)} that it lacks are zero" if lacking else ""
    assert f"head: {kept:,} of 1,000 classes mapped{zero}" in str(weights.loaded)


# --- what does not fit ---


def plain(**settings):
    """A config of the small model."""
    shape = dict(image_size=12, patch_size=4, width=8, depth=2, mlp_width=16, heads=2)
    model = ViTConfig(**{**shape, "num_classes": 5, **settings})
    return TrainConfig(model=model, init_from="x")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(width=16), r"width 8; the run has width 16. Set --model.width 8, or train finetune"),
        (dict(depth=1, mlp_width=8), r"depth 2, mlp_width 16; the run has depth 1, mlp_width 8"),
        (dict(patch_size=6), r"--model.patch-size 4"),
        (dict(pool="mean"), r"The file needs pool=token"),
        (dict(registers=2), r"The file needs registers=0"),
    ],
)
def test_weights_of_another_model_are_refused(settings, message, tmp_path):
    save_weights(tmp_path / "a.safetensors", make())
    with pytest.raises(ValueError, match=message):
        InitialWeights.of(tmp_path / "a.safetensors", plain(**settings), CLASSES)


@pytest.mark.parametrize(
    ("how", "outputs", "classes", "message"),
    [
        ("keep", 7, CLASSES, "the head of .* has 7 classes and the data has 5: set it to map"),
        ("keep", 1000, class_list("1k")[::-1], "the data has the same in another order"),
        ("map", 7, CLASSES, "has a head of 7 classes and does not list them"),
        ("map", 1000, CLASSES, r"of the data \(n00000000, ...\) have none in common"),
    ],
)
def test_a_head_of_other_classes_is_refused(how, outputs, classes, message, tmp_path):
    save_weights(tmp_path / "a.safetensors", make(num_classes=outputs))
    config = plain(num_classes=len(classes)).replace({"init_head": how})
    with pytest.raises(ValueError, match=message):
        InitialWeights.of(tmp_path / "a.safetensors", config, classes)


def test_a_file_without_a_head_gives_none_to_keep(tmp_path):
    save_weights(tmp_path / "a.safetensors", make(), head="drop")
    InitialWeights.of(tmp_path / "a.safetensors", plain(), CLASSES)
    for how in ("keep", "map"):
        config = plain().replace({"init_head": how})
        with pytest.raises(ValueError, match=f"init_head is {how}, but .* has no head"):
            InitialWeights.of(tmp_path / "a.safetensors", config, CLASSES)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("n00000002", "n00000001"), "the data has the same in another order"),
        (("n00000001", "n00000003"), "the data has other ones"),
    ],
)
def test_classes_that_a_checkpoint_lists_are_kept_in_their_order_alone(classes, message, tmp_path):
    config = CONFIG.replace({"model.num_classes": 2, "init_from": "x", "init_head": "keep"})
    path = write(tmp_path, 1, model=ViT(config.model).state_dict(), config=config)
    assert InitialWeights.of(path, config, ("n00000001", "n00000002")).rows is None
    with pytest.raises(ValueError, match=message):
        InitialWeights.of(path, config, classes)
    mapped = InitialWeights.of(path, config.replace({"init_head": "map"}), classes)
    assert mapped.rows == ((1, 0) if classes[0] == "n00000002" else (0, -1))


def test_another_normalisation_of_pixels_is_warned_of(tmp_path, caplog):
    _, images, _ = original("deit3", tmp_path)
    config = sized(PRESETS["finetune"], str(tmp_path / "a.pth"), "runs")
    assert config.images.mean == (0.485, 0.456, 0.406)  # the preset takes that of the weights
    config = config.replace({**TINY, "model.num_classes": 5})
    InitialWeights.of(tmp_path / "a.pth", config, CLASSES)
    assert "images.mean" not in caplog.text
    InitialWeights.of(tmp_path / "a.pth", config.replace({"images.mean": (0.5,) * 3}), CLASSES)
    assert "set --images.mean 0.485 0.456 0.406" in caplog.text


# --- where every node finds them ---


ADDRESS = "s3://bucket/vit"


@pytest.fixture
def copied(tmp_path):
    """Initial weights that were fetched from an address."""
    folder = tmp_path / "cache"
    folder.mkdir()
    save_weights(folder / "model.safetensors", make())
    (folder / "state.pt").write_bytes(b"large")
    weights = InitialWeights.of(folder, plain(), CLASSES)
    return dataclasses.replace(weights, address=ADDRESS)


def test_what_was_fetched_is_put_into_the_folder_of_the_run(copied, tmp_path):
    run = RunFolder.of(str(tmp_path / "runs"), "run")
    run.path.mkdir(parents=True)
    placed = copied.placed(run)
    assert placed.place == str(tmp_path / "runs/run/init")
    names = sorted(path.name for path in placed.on_node.iterdir())
    assert names == ["model.safetensors", "source.json"]
    read_weights(placed.on_node)
    kept = dataclasses.replace(copied, address=None)  # a path that every node sees stays
    assert kept.placed(run) == kept and kept.place == copied.path


def test_a_copy_is_found_again_by_its_address_if_it_is_whole(copied, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "node"))
    for runs_dir in (str(tmp_path / "runs"), (tmp_path / "store").as_uri()):
        run = RunFolder.of(runs_dir, "run")
        run.path.mkdir(parents=True)
        assert InitialCopy.find(run, ADDRESS) is None
        copy = copied.placed(run).copy
        assert InitialCopy.find(run, ADDRESS) == copy
        assert InitialCopy.find(run, "s3://bucket/other") is None
        place = tmp_path / "store/run/init" if run.uri else run.path / "init"
        for folder in {place, run.path / "init"}:
            (folder / "model.safetensors").write_bytes(b"cut off")
        assert InitialCopy.find(run, ADDRESS) is None


def test_with_a_store_each_node_fetches_it_and_checks_every_byte(copied, tmp_path, monkeypatch):
    def machine(name):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        run = RunFolder.of((tmp_path / "store").as_uri(), "run")
        run.path.mkdir(parents=True, exist_ok=True)
        return run

    placed = copied.placed(machine("driver"))
    assert (tmp_path / "store/run/init/model.safetensors").is_file()
    run = machine("node")
    assert placed.place == f"{(tmp_path / 'store').as_uri()}/run/init"
    placed.copy.fetch()
    assert placed.on_node == run.path / "init"
    assert str(tmp_path / "node") in str(run.path)
    assert read_weights(placed.on_node).keys() == read_weights(copied.path).keys()
    file = run.path / "init/model.safetensors"
    file.write_bytes(b"damaged")
    placed.copy.fetch()  # anew
    read_weights(placed.on_node)
    stored_file = tmp_path / "store/run/init/model.safetensors"
    stored_file.write_bytes(stored_file.read_bytes()[:-1] + b"x")
    file.unlink()
    with pytest.raises(ValueError, match="is damaged"):
        placed.copy.fetch()
