"""A wheel holds every file that the packages need, and runs away from the checkout."""

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


def test_an_installed_wheel_runs_the_demo(wheel, tmp_path):
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
        [sys.executable, "-m", "pipeline", "train", "demo", "--epochs", "4", "--optim.warmup", "0"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=tmp_path,
        timeout=400,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert (tmp_path / "runs" / "demo" / "report.html").exists()
