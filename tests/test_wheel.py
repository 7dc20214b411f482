"""A wheel holds every file that the packages need, and runs away from the checkout."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("support", "shards", "vit", "pipeline", "tune")

pytestmark = [pytest.mark.slow, pytest.mark.ray]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of the working tree."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", str(ROOT)]
    subprocess.run([*command, "--wheel-dir", str(folder)], check=True, timeout=300)
    (path,) = folder.glob("*.whl")
    return path


def test_a_wheel_holds_every_file_of_the_packages(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    files = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert files - names == set()
    tops = {name.partition("/")[0] for name in names} - {n for n in names if "/" not in n}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)


def test_an_installed_wheel_runs_the_demo_as_shipped_to_96_percent(wheel, tmp_path):
    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    subprocess.run([*command, str(site), str(wheel)], check=True, timeout=300)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    where = "import pipeline, support; print(pipeline.__file__, support.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", where], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert all(path.startswith(str(site)) for path in found.stdout.split())
    result = subprocess.run(
        [sys.executable, "-m", "pipeline", "train", "demo"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=900,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    run = tmp_path / "runs" / "demo"
    assert (run / "report.html").exists()
    outcome = json.loads((run / "result.json").read_text())
    assert outcome["steps"] == 449  # 40 epochs
    assert min(outcome["protocols"][name]["top1"] for name in ("center", "five")) >= 0.96
