"""The command line: bad input is refused with status 2 and one message, before Ray starts."""

import importlib
import importlib.metadata
import os
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.commands.train import result_facts
from pipeline.outcome import Outcome, training_rate
from pipeline.settings.config import DataConfig, TrainConfig
from pipeline.settings.presets import PRESETS, find_preset
from pipeline.tracking import journal
from shards.dataset import store
from shards.dataset.store import locate
from support import code
from support.settings import field_docs
from vit import registry
from vit.config import OptimConfig, ViTConfig

ROOT = Path(__file__).parent.parent


def pipeline(*arguments: str, cwd=None) -> subprocess.CompletedProcess:
    """Run the pipeline's command line as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        # nobody is there
        env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": "203.0.113.1:1"},
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nonsense"], "unknown preset 'nonsense'; known: demo"),
        (["train", "dmeo"], "unknown preset 'dmeo'; did you mean 'demo'?"),
        (["trian"], "unknown command 'trian'; did you mean 'train'?"),
        (["train", "demo", "--optim.lrate", "1"], "--optim.lrate"),
        (["train", "demo", "--optim.lr", "-1"], "optim.lr (-1.0) must be above 0"),
        (["train", "demo", "--workers", "0"], "workers (0) must be at least 1"),
        (["train", "demo", "--data.dir", "not/there"], "not/there: it has no manifest.json"),
    ],
)
def test_bad_input_is_refused_before_ray_starts(arguments, message, tmp_path):
    result = pipeline(*arguments, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_help_of_train_names_the_presets():
    result = pipeline("train", "--help")
    assert result.returncode == 0
    for name, preset in PRESETS.items():
        assert f"{name} " in result.stdout and preset.summary in result.stdout


def test_help_shows_common_settings_and_help_all_every_one():
    brief, whole = pipeline("train", "demo", "--help"), pipeline("train", "demo", "--help-all")
    assert brief.returncode == whole.returncode == 0
    for name, metadata, _ in find_preset("demo").items():
        flag = f"--{name.replace('_', '-')} "
        flag = flag if flag in whole.stdout else f"{flag[:-1]},"  # a flag, with its --no- form
        assert flag in whole.stdout
        assert (flag in brief.stdout) == bool(metadata.get("common")), name
    assert "--help-all shows every setting" in brief.stdout
    assert len(brief.stdout.splitlines()) < 120 < len(whole.stdout.splitlines())


def test_texts_of_help_have_no_line_breaks_of_the_source():
    shown = pipeline("train", "demo", "--help-all").stdout
    text = " ".join(line.strip("│ ") for line in shown.splitlines())
    for kind in (TrainConfig, DataConfig, ViTConfig, OptimConfig):
        for name, doc in field_docs(kind).items():
            assert "\n" not in doc and doc in text, name


def test_a_setting_may_stand_before_the_preset():
    result = pipeline("train", "--name", "wide", "--no-compile", "demo", "--plan")
    assert result.returncode == 0, result.stderr
    assert "1,437 images" in result.stdout


def test_version_is_that_of_the_distribution_and_of_the_checkout():
    shown = pipeline("--version").stdout
    version = f"vit-pretraining {importlib.metadata.version('vit-pretraining')}"
    commit = code.commit()
    assert shown == f"{version}, commit {commit}\n" if commit else f"{version}\n"


def test_a_copy_inside_the_checkout_of_something_else_has_no_commit(tmp_path):
    git = ["git", "-c", "user.name=a", "-c", "user.email=b", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "-m", "other"], check=True)
    with code.copied() as folder:
        folder.rename(tmp_path / "site")
        shown = subprocess.run(
            [sys.executable, "-c", "from support import code; print(code.commit())"],
            cwd=tmp_path / "site",
            capture_output=True,
            text=True,
            check=True,
        )
        folder.mkdir()
    assert shown.stdout == "None\n"


def test_the_scripts_of_the_distribution_exist():
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts.keys() == {"vit-pipeline", "vit-shards", "vit-tune"}
    for place in scripts.values():
        module, _, name = place.partition(":")
        assert getattr(importlib.import_module(module), name)(["--version"]) == 0


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        (["train"], "PRESET"),
        (["evaluate"], "CHECKPOINT"),
        (["report"], "RUN"),
        (["track", "sync"], "RUN"),
        (["compare"], "two runs or more"),
        (["export", "x"], "--out"),
        (["export", "--out", "x"], "CHECKPOINT"),
    ],
)
def test_a_missing_argument_is_named_without_the_whole_usage(arguments, missing):
    result = pipeline(*arguments)
    assert result.returncode == 2
    assert missing in result.stderr
    assert "usage:" not in result.stderr and len(result.stderr.splitlines()) <= 12


SECRET = "s3://AKIAABCDEFGHIJKLMNOP:5ecretKey5ecretKey@bucket/x"
WITH_SECRET = [
    ("pipeline", "train", "demo", "--data.dir", SECRET),
    ("pipeline", "train", SECRET),
    ("pipeline", "train", "demo", SECRET),
    ("pipeline", "train", "demo", "--optim.lr", SECRET),
    ("pipeline", "train", "demo", "--crops", SECRET),
    ("pipeline", "train", "--preset-file", SECRET),
    ("pipeline", "train", "finetune", "--init-from", SECRET),
    ("pipeline", "evaluate", SECRET),
    ("pipeline", "report", SECRET),
    ("pipeline", "report", "run", SECRET),
    ("pipeline", "list", SECRET),
    ("pipeline", "compare", SECRET, "x"),
    ("pipeline", "compare", "x", "y", "--out", f"{SECRET}/"),
    ("pipeline", "track", "sync", SECRET),
    ("pipeline", "export", SECRET, "--out", "x"),
    ("pipeline", "export", "x", "--out", SECRET),
    ("pipeline", "export", "x", "--out", "y", "--data", SECRET),
    ("pipeline", SECRET),
    ("shards", "build", SECRET, "--out", "x", "--workers", "0"),
    ("shards", "build", "x", "--out", SECRET, "--workers", "0"),
    ("shards", "info", SECRET),
    ("shards", "verify", SECRET, "--workers", "0"),
    ("shards", "index", SECRET, "--workers", "0"),
    ("shards", SECRET),
    ("tune", "search", "demo", "--base.data.dir", SECRET),
    ("tune", "search", SECRET),
    ("tune", "search", "demo", "--space", SECRET),
    ("tune", "search", "demo", "--set", f"data.dir=choice({SECRET},x)"),
    ("tune", "report", SECRET),
]


def unreachable(**_: object) -> None:
    raise ConnectionError("no cluster")


def unreachable_store(location: object) -> object:
    """What a store does that does not answer; local folders are as they are."""
    if "://" in str(location):
        raise ConnectionError(f"{location} does not answer")
    return locate(location)


@pytest.mark.parametrize("command", WITH_SECRET, ids=" ".join)
def test_a_secret_in_an_argument_appears_nowhere(command, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # by another test of this process
    monkeypatch.setattr("ray.init", unreachable)
    monkeypatch.setattr(store, "locate", unreachable_store)
    package, *arguments = command
    try:
        status = importlib.import_module(f"{package}.__main__").main(arguments)
    except SystemExit as left:
        status = left.code
    said = capfd.readouterr()
    written = "".join(path.read_text() for path in tmp_path.rglob("*") if path.suffix == ".json")
    assert status in (1, 2)
    for part in ("AKIAABCDEFGHIJKLMNOP", "5ecretKey5ecretKey"):
        assert part not in said.out + said.err + written


def test_the_result_of_a_run_without_a_reason_for_its_checkpoint_has_none(tmp_path):
    job = SimpleNamespace(config=find_preset("demo"), dir=tmp_path / "run")
    facts = {"steps": 1, "images_per_s": 1.0, "checkpoint": "step-1"}
    names = ("top1", "top1_low", "top1_high", "top5", "ece")
    figures = {"images": 5, "views": 1, **dict.fromkeys(names, 0.5)}
    outcome = Outcome(**facts, protocols={"center": figures})  # of an earlier version
    assert "checkpoint  step-1\n" in result_facts(job, outcome)
    outcome = replace(outcome, chosen="the last step")
    assert "checkpoint  step-1 (the last step)\n" in result_facts(job, outcome)
    assert "trained     1 steps at 1 images/s\n" in result_facts(job, outcome)
    outcome = replace(outcome, images_per_s=None)
    assert "trained     1 steps\n" in result_facts(job, outcome)


def test_the_rate_of_a_run_is_that_of_its_record_whoever_finishes_it(tmp_path):
    assert training_rate(tmp_path) is None
    for step, rate in enumerate((900.0, 10.0, 1000.0), start=1):  # the second interval was slow
        journal.write_record(tmp_path, {"kind": "train", "step": step, "images_per_s": rate})
    journal.write_record(tmp_path, {"kind": "eval", "step": 3, "val/top1": 0.5})
    assert training_rate(tmp_path) == 900.0


@pytest.mark.parametrize(
    ("package", "words", "remedy"),
    [
        ("pipeline", ["evaluate", "vit.npz", "--data", "in1k"], "the same command resumes"),
        ("pipeline", ["predict", "vit.npz", "photos"], "the same command begins anew"),
        ("pipeline", ["export", "vit.npz", "--out", "vit"], "the same command begins anew"),
        ("tune", ["search", "demo"], "the same command with --resume continues the search"),
    ],
)
def test_an_interrupted_command_says_what_to_do(package, words, remedy, monkeypatch, capsys):
    program = importlib.import_module(f"{package}.__main__")

    def interrupted(*_):
        raise KeyboardInterrupt

    command = program.COMMANDS[words[0]]
    monkeypatch.setattr(command, "prepare", interrupted, raising=False)
    monkeypatch.setattr(command, "__call__", interrupted)
    assert program.main(words) == 130
    assert capsys.readouterr().err == f"interrupted; {remedy}\n"


SQUASHED = ("images.eval-resize", "squash", "crops", "three")


@pytest.mark.parametrize(
    ("package", "command", "settings", "message"),
    [
        ("pipeline", ("train", "demo"), SQUASHED, "crops 'three' are squares along the long side"),
        ("tune", ("search", "demo"), SQUASHED, "crops 'three' are squares along the long side"),
        ("pipeline", ("train", "demo"), ("crops", "odd"), "have the shape (6, 32, 32, 3)"),
    ],
)
def test_crops_that_cannot_be_made_are_refused_before_anything_starts(
    package, command, settings, message, digits, tmp_path, monkeypatch, capsys
):
    odd = registry.CropProtocol(function="vit.crops:five", views=4)
    monkeypatch.setitem(registry.CROPS, "odd", odd)
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("Ray was started"))
    settings = (*settings, "data.dir", str(digits), "runs-dir", str(tmp_path / "runs"))
    prefix = "--base." if package == "tune" else "--"
    words = [f"{prefix}{word}" if n % 2 == 0 else word for n, word in enumerate(settings)]
    main = importlib.import_module(f"{package}.__main__").main
    assert main([*command, *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
