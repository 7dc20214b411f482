"""Presets of the size of the weights, on the command line; and weights at an address."""

import json
import shutil

import published_recipes as published
import pytest
import s3_server
import torch
from archives import small_archive
from checkpoints import CONFIG, write
from test_pipeline_main import pipeline
from test_vit_dialects import make

from pipeline.__main__ import main
from pipeline.commands.train import Train
from pipeline.initial_weights import fetched, planned, sized
from pipeline.run import prepared
from pipeline.settings.presets import PRESETS
from pipeline.tracking import mlflow_weights
from pipeline.tracking.mlflow_address import DATABASE
from shards.build.config import BuildConfig
from shards.build.pack import build
from support.files import write_json
from tune.__main__ import Search, SearchElsewhere
from vit.config import ImageConfig, ViTConfig
from vit.model import ViT
from vit.weights import read_weights, save_npz, save_weights

STATES = {"name", "init_from"}
SIZES = [*published.AUGREG_TABLE_3]


def start(size):
    """A model of a published size, as its weights say it, and how its images are prepared."""
    return ViTConfig.named(size, gelu="tanh", num_classes=21_843), ImageConfig()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("name", "suffix"), [("finetune", ""), ("finetune-224", "-224")])
def test_every_published_size_has_the_published_settings(size, name, suffix):
    short = size.lower().replace("/", "")
    config = PRESETS[name].of_weights(*start(size))
    assert config.name == f"{name}-{short}"
    expected = published.RECIPES[f"in1k-finetune-{short}{suffix}"]
    found = {k: v for k, v in config.flat().items() if k not in published.RUNNING | STATES}
    assert found == {k: v for k, v in expected.items() if k not in STATES}


@pytest.mark.parametrize("size", published.MAE_FINETUNED)
def test_with_adamw_every_size_of_mae_has_its_settings(size):
    epochs, base_rate, layer_decay, drop_path = published.MAE_FINETUNED[size]
    config = PRESETS["finetune-adamw"].of_weights(*start(size))
    expected = (
        published.MAE
        | published.shape(size)
        | {
            "model.gelu": "tanh",
            "model.drop_path": drop_path,
            "optim.lr": base_rate * 1024 / 256,
            "optim.layer_decay": layer_decay,
            "epochs": epochs,
        }
    )
    found = {k: v for k, v in config.flat().items() if k not in published.RUNNING | STATES}
    assert found == {k: v for k, v in expected.items() if k not in STATES}


@pytest.mark.parametrize("size", published.BEIT_FINETUNED)
def test_at_384_pixels_every_size_of_beit_has_its_settings(size):
    layer_decay, drop_path = published.BEIT_FINETUNED[size]
    config = PRESETS["finetune-adamw-384"].of_weights(*start(size))
    own = {"model.gelu": "tanh", "model.drop_path": drop_path, "optim.layer_decay": layer_decay}
    expected = published.BEIT | published.shape(size, 384) | own
    found = {k: v for k, v in config.flat().items() if k not in published.RUNNING | STATES}
    assert found == {k: v for k, v in expected.items() if k not in STATES}


def test_a_size_that_is_not_published_has_the_rate_of_the_nearest_and_a_grid_that_fits():
    model = ViTConfig(width=128, depth=4, mlp_width=512, heads=4, patch_size=14, image_size=28)
    config = PRESETS["finetune"].of_weights(model, ImageConfig())
    assert (config.name, config.model.image_size) == ("finetune-w128d4p14", 378)
    assert config.optim.lr == 0.03  # of Ti/16
    huge = PRESETS["finetune"].of_weights(*start("H/14"))
    assert (huge.name, huge.model.image_size, huge.optim.lr) == ("finetune-h14", 378, 0.01)


def test_what_the_weights_decide_is_theirs_and_what_trained_them_is_not():
    theirs = ViTConfig.named(
        "B/16",
        pool="mean",
        registers=4,
        layer_scale=0.1,
        qkv_bias=False,
        norm_eps=1e-12,
        dropout=0.1,
        drop_path=0.2,
        head_bias=-10.0,
        pre_logits=True,
        num_classes=7,
    )
    images = ImageConfig(mean=(0.1, 0.2, 0.3), std=(0.3, 0.2, 0.1))
    config = PRESETS["finetune"].of_weights(theirs, images)
    ours = config.model
    for name in ("pool", "registers", "layer_scale", "qkv_bias", "norm_eps"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert (ours.dropout, ours.drop_path, ours.head_bias) == (0, 0, 0)
    assert not ours.pre_logits and ours.num_classes is None
    assert (config.images.mean, config.images.std) == (images.mean, images.std)


# --- the command line ---


def said(errors):
    return " ".join(errors.replace("│", " ").split())


def test_the_plan_is_the_published_one_for_the_size_in_the_file(tmp_path):
    save_npz(tmp_path / "s32.npz", ViT(ViTConfig.named("S/32", num_classes=21_843, gelu="tanh")))
    shown = pipeline("train", "finetune", "--init-from", "s32.npz", "--plan", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "20,000 of 512 images" in shown.stdout
    assert "sgd, warm-up of 500 steps" in shown.stdout
    assert "from 0 to 0.01, then cosine to 0; weight decay 0" in shown.stdout
    assert "pos_embed resampled 7x7 -> 12x12; head of 21,843 classes dropped" in shown.stdout
    assert "new: head" in shown.stdout and "blocks.3.attn" not in shown.stdout
    given = ("--init-from=s32.npz", "--model.image-size", "224", "--optim.lr", "0.5")
    shown = pipeline("train", "finetune", *given, "--plan", "--verbose", cwd=tmp_path)
    assert "to 0.5, then cosine" in shown.stdout and "resampled" not in shown.stdout
    assert "blocks.3.attn.qkv.weight" in shown.stdout


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder with weights of a small model, a file that is none, and a small shard set."""
    folder = tmp_path_factory.mktemp("weights")
    save_weights(folder / "a.safetensors", make())
    (folder / "notes.txt").write_text("no weights")
    (folder / "b.safetensors").write_bytes(b"no weights")
    small_archive(folder / "a.tar")
    build([folder / "a.tar"], folder / "set", BuildConfig(resize_short=32, val_per_class=2))
    return folder


REFUSED = [
    (["finetune"], "preset finetune has the size of its weights: give --init-from"),
    (["finetune", "--init-from", "none.npz"], "none.npz does not exist; give a run"),
    (["finetune", "--init-from", "notes.txt"], "notes.txt"),
    (["finetune", "--init-from", "b.safetensors"], "b.safetensors"),
    (["finetune", "--init-from", "models:/vit/1"], f"has no {DATABASE}"),
    (["in1k-finetune-s16", "--init-from", "a.safetensors"], "is a model of another size: patch"),
    (["finetune", "--init-from", "a.safetensors"], "too small for model.image_size (384)"),
    (["finetune", "--init-from", "a.safetensors", "--init-head", "keep"], "and the data has 3"),
    (["finetune", "--init-from", "a.safetensors", "--init-head", "map"], "does not list them"),
    (["demo", "--init-head", "map"], "init_head ('map') maps the head of init_from"),
    (["demo", "--data.select-split", "val"], "must be apart from train_split and eval_split"),
    (["demo", "--data.select-split", "mini"], "has no split 'mini'; it has: train, val"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_what_cannot_be_started_from_is_refused_with_status_2(
    arguments, message, weights, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("Ray was started"))
    given = [str(weights / word) if (weights / word).is_file() else word for word in arguments]
    if "too small" not in message:
        given += ["--model.image-size", "32"] if "a.safetensors" in arguments else []
    if arguments[0] != "demo" or "mini" in arguments:
        given += ["--data.dir", str(weights / "set")]
    if "in1k-finetune-s16" in arguments:
        given += ["--data.allow-upsampling"]
    assert main(["train", *given, "--runs-dir", str(tmp_path / "runs")]) == 2
    errors = capsys.readouterr().err
    assert message in said(errors) and "Traceback" not in errors
    assert not list(tmp_path.glob("runs/*/config.json"))


def test_a_server_that_is_no_address_is_refused_with_status_2(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "htp://localhost:5000")
    result = pipeline("train", "finetune", "--init-from", "models:/vit/1", cwd=tmp_path)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "models:/vit/1 cannot be fetched from htp://localhost:5000" in said(result.stderr)


def test_a_preset_file_and_a_search_take_the_size_from_the_weights_too(weights, tmp_path):
    from pipeline.commands.train import TrainElsewhere

    file = str(weights / "a.safetensors")
    settings = {"init_from": file, "optim.lr": 0.5}
    (tmp_path / "a.json").write_text(json.dumps({"preset": "finetune", "settings": settings}))
    command, _, _ = Train.prepare(["--preset-file", str(tmp_path / "a.json")])
    assert (command.config.model.width, command.config.optim.lr) == (8, 0.5)
    # the command line wins, on this machine and where another one reads the weights
    bare = tmp_path / "bare.json"
    bare.write_text(json.dumps({"preset": "finetune", "settings": {"optim.lr": 0.5}}))
    command, _, _ = Train.prepare(["--preset-file", str(bare), "--init-from", file])
    assert (command.config.model.width, command.takes_size) == (8, True)
    there, _, _ = TrainElsewhere.prepare(["--preset-file", str(bare), "--init-from", "s3://b/x"])
    assert there.takes_size
    bare.write_text(json.dumps({"preset": "finetune", "settings": {"model.width": 384}}))
    assert not TrainElsewhere.prepare(["--preset-file", str(bare)])[0].takes_size
    search, _, _ = Search.prepare(["finetune", "--base.init-from", file, "--space", "finetune"])
    assert (search.base.model.width, search.base.name) == (8, "finetune-w8d2p4")
    # launched: the weights may be readable on the cluster alone
    there, _, rest = TrainElsewhere.prepare(["finetune", "--init-from", "s3://bucket/vit.npz"])
    assert there.takes_size and rest == ["--init-from", "s3://bucket/vit.npz"]
    SearchElsewhere.prepare(["finetune", "--base.init-from", "s3://bucket/vit.npz"])
    with pytest.raises(ValueError, match="give --base.init-from"):
        SearchElsewhere.prepare(["finetune"])


def test_a_run_that_was_begun_keeps_its_size_whatever_became_of_the_weights(weights, tmp_path):
    def train(*more):
        given = ["finetune", "--init-from", str(file), "--runs-dir", str(tmp_path / "runs"), *more]
        return Train.prepare(given)[0].config

    file = tmp_path / "vit.safetensors"
    shutil.copy(weights / "a.safetensors", file)
    config = train()
    assert config.name == "finetune-w8d2p4"
    run = tmp_path / "runs" / config.name
    run.mkdir(parents=True)
    started = config.absolute().replace({"model.num_classes": 3, "optim.lr": 0.5})
    write_json(run / "config.json", started.flat())
    save_weights(file, make(depth=3))  # other weights, and then none
    assert train("--name", "new").model.depth == 3
    for _ in range(2):
        assert train() == config == train("--name", config.name)
        file.unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        train("--name", "new")
    search = tmp_path / "runs/finetune-w8d2p4-finetune"
    search.mkdir()
    write_json(search / "search.json", {"run": started.flat()})
    given = ["finetune", "--base.init-from", str(file), "--base.runs-dir", str(tmp_path / "runs")]
    assert Search.prepare([*given, "--resume"])[0].base.model == config.model
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Search.prepare(given)


# --- at an address ---


def test_a_run_that_has_no_checkpoint_yet_starts_again_from_its_copy(weights, tmp_path):
    (tmp_path / "store").mkdir()
    file = tmp_path / "store/vit.safetensors"
    shutil.copy(weights / "a.safetensors", file)
    settings = {"data.dir": str(weights / "set"), "runs_dir": str(tmp_path / "runs")}
    config = sized(PRESETS["finetune"], file.as_uri(), settings["runs_dir"])
    config = config.replace({"model.image_size": 32, **settings})
    job = prepared(config)
    job.weights.placed(job.folder)
    expected = read_weights(weights / "a.safetensors")["head.weight"]
    save_weights(file, make(seed=2))  # the address names something else
    for _ in range(2):
        found = prepared(config).weights
        assert found.on_node.parent == job.dir / "init" and found.placed(job.folder) == found
        assert torch.equal(read_weights(found.on_node)["head.weight"], expected)
        file.unlink(missing_ok=True)  # and then nothing
    (job.dir / "init/vit.safetensors").write_bytes(b"cut off")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        prepared(config)


def test_a_run_in_a_store_hands_on_the_selected_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    config = CONFIG.replace({"model.num_classes": 2})
    model = ViT(config.model).state_dict()
    place = (tmp_path / "store").as_uri()
    for step, top1 in ((1, 0.9), (2, 0.5)):
        about = {"metrics": {"select/top1": top1}, "model": model, "config": config}
        write(tmp_path / "node", step, f"{place}/run/checkpoints", **about)
    found = fetched(f"{place}/run", "runs")
    assert found.name == "step-000000001"
    settings = sized(PRESETS["finetune-224"], f"{place}/run", "runs")
    assert (settings.model.width, settings.name) == (128, "finetune-224-w128d4p8")
    assert settings.init_from == f"{place}/run"
    line = planned(settings.replace({"model.num_classes": 3}), verbose=False)
    assert "pos_embed resampled 4x4 -> 28x28; head of 2 classes dropped; new: head" in line


def test_a_run_starts_from_a_file_in_s3_and_keeps_its_copy_there(weights, tmp_path, monkeypatch):
    objects = s3_server.Objects()
    with s3_server.serving("bucket", objects) as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "driver"))
        file = (weights / "a.safetensors").read_bytes()
        objects.objects["bucket/weights/vit.safetensors"] = file
        place = "s3://bucket/runs"
        config = sized(PRESETS["finetune"], "s3://bucket/weights/vit.safetensors", place)
        data = {"data.dir": str(weights / "set"), "model.image_size": 32, "runs_dir": place}
        job = prepared(config.replace(data))
        placed = job.weights.placed(job.folder)
        assert placed.place == "s3://bucket/runs/finetune-w8d2p4/init"
        assert objects.objects["bucket/runs/finetune-w8d2p4/init/vit.safetensors"] == file
        del objects.objects["bucket/weights/vit.safetensors"]
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))  # machine
        found = prepared(config.replace(data)).weights
        assert found.copy == placed.copy and found.on_node.read_bytes() == file
        assert str(tmp_path / "another") in str(found.on_node)


def test_weights_of_a_logged_and_of_a_registered_model_are_fetched(tmp_path, monkeypatch):
    import mlflow
    from mlflow.models import Model

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    runs = tmp_path / "runs"
    runs.mkdir()
    client = mlflow.MlflowClient(f"sqlite:///{runs}/{DATABASE}")
    number = client.create_experiment("vit", artifact_location=(runs / "mlartifacts").as_uri())
    run = client.create_run(number).info.run_id
    model = make()
    (tmp_path / "model/checkpoint").mkdir(parents=True)
    save_weights(tmp_path / "model/checkpoint/model.safetensors", model)
    Model(run_id=run).save(str(tmp_path / "model/MLmodel"))
    client.log_artifacts(run, str(tmp_path / "model/checkpoint"), "checkpoint")
    logged = client.create_logged_model(number, name="vit", source_run_id=run)
    client.log_model_artifacts(logged.model_id, str(tmp_path / "model"))
    client.finalize_logged_model(logged.model_id, "READY")
    client.create_registered_model("vit")
    version = client.create_model_version("vit", logged.artifact_location, run_id=run)
    client.set_registered_model_alias("vit", "champion", version.version)
    addresses = (f"runs:/{run}/checkpoint", "models:/vit/1", "models:/vit@champion")
    for address in (*addresses, f"models:/{logged.model_id}"):
        tensors = read_weights(fetched(address, str(runs)))
        assert torch.equal(tensors["head.weight"], model.state_dict()["head.weight"]), address
    for address in ("models:/vit/7", "models:/none/1", f"runs:/{run}/none", "runs:/0/checkpoint"):
        with pytest.raises(FileNotFoundError, match="cannot be fetched"):
            fetched(address, str(runs))
    # a model is fetched once; an alias that moves names another one
    monkeypatch.setattr(mlflow_weights, "download_artifacts", None)
    mlflow_weights.fetched_weights.cache_clear()
    first = fetched("models:/vit/1", str(runs))
    assert fetched("models:/vit@champion", str(runs)) == first
    monkeypatch.undo()
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    again = client.create_model_version("vit", logged.artifact_location, run_id=run)
    client.set_registered_model_alias("vit", "champion", again.version)
    mlflow_weights.fetched_weights.cache_clear()
    assert fetched("models:/vit@champion", str(runs)) != first and first.is_dir()
    client.log_text(run, "x", "notes/a.txt")
    client.log_text(run, "x", "notes/b.txt")
    with pytest.raises(ValueError, match="has no model.safetensors"):
        fetched(f"runs:/{run}/notes", str(runs))
