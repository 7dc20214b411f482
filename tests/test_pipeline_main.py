"""The command line: bad input is refused with status 2 and one message, before Ray starts."""

import os
import subprocess
import sys

import pytest


def pipeline(*arguments: str, cwd=None) -> subprocess.CompletedProcess:
    """Run the pipeline's command line as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "RAY_ADDRESS": "203.0.113.1:1"},  # nobody is there
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nonsense"], "unknown preset 'nonsense'; known: demo"),
        (["trian"], "unknown command 'trian'"),
        (["train", "demo", "--optim.lrate", "1"], "--optim.lrate"),
        (["train", "demo", "--optim.lr", "-1"], "lr is -1.0"),
        (["train", "demo", "--workers", "0"], "workers (0) must be at least 1"),
        (["train", "demo", "--data.dir", "not/there"], "not/there: manifest.json is not there"),
    ],
)
def test_bad_input_is_refused_before_ray_starts(arguments, message, tmp_path):
    result = pipeline(*arguments, cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert message in " ".join(result.stderr.replace("│", " ").split())
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]])
def test_help_names_the_presets(arguments):
    result = pipeline(*arguments)
    assert result.returncode == 0
    assert "demo" in result.stdout


def test_help_of_a_preset_lists_every_setting():
    from pipeline.settings.presets import find_preset

    result = pipeline("train", "demo", "--help")
    assert result.returncode == 0
    for name in find_preset("demo").flat():
        assert f"--{name.replace('_', '-')}" in result.stdout
