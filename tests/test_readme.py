"""Commands of the README and of the docs exist and take the settings that they are shown with."""

import gzip
import json
import re
import shlex
import subprocess
import sys
import tomllib
from functools import lru_cache
from pathlib import Path

import pytest
from archives import WNIDS, class_images, jpeg, nested, small_archive, tar_bytes
from test_shards_source import devkit

from shards.__main__ import main as shards
from shards.dataset import format

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
PAGES += sorted((ROOT / "docs").glob("*.md"))
README = PAGES[0].read_text()
PACKAGES = ("support", "shards", "vit", "pipeline", "tune")


def commands(text: str) -> list[str]:
    """The lines of the blocks of shell commands."""
    return [
        line.strip()
        for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
        for line in block.replace("\\\n", " ").splitlines()
        if line.strip()
    ]


def launched(command: str) -> list[str]:
    """A launch as two commands, itself and the one that it runs; others as they are."""
    launch, mark, words = command.partition(" -- ")
    if not mark or " launch " not in launch:
        return [command]
    program = "" if words.startswith(("shards ", "tune ")) else "pipeline "
    return [launch, f"python -m {program}{words}"]


COMMANDS = [
    part for page in PAGES for command in commands(page.read_text()) for part in launched(command)
]


def test_set_up_takes_two_commands():
    assert commands(README)[:2] == [
        "pip install -e . && python -m pipeline train demo",
        "pip install -e '.[test]' && pytest",
    ]


@lru_cache
def help_of(*command: str) -> str:
    """What a command prints when it is asked for help."""
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith(("python ", "mlflow "))])
def test_command_exists_and_takes_its_settings(command):
    words = shlex.split(command)
    words[0] = str(Path(sys.executable).parent / words[0])
    flags = {word.split("=")[0] for word in words if word.startswith("--")}
    # the command, without its settings and without folders that are not there
    plain = words[:1] + [
        word
        for before, word in zip(words, words[1:], strict=False)
        if word not in flags and before not in flags and "/" not in word
    ]
    shown = help_of(*plain, "--help" if plain[1] == "ui" else "--help-all")
    missing = {flag for flag in flags if flag.replace("_", "-") not in shown}
    assert not missing, f"{missing} are not in the help of {' '.join(plain)}"


def section(title: str) -> str:
    """The text below a heading of the README."""
    return README.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_commands_that_make_shards_run_in_their_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    val = {n: jpeg(70 + n, 600, 520) for n in range(1, 7)}
    names = {n: f"ILSVRC2012_val_{n:08d}.JPEG" for n in val}
    train = {wnid: class_images(wnid, 4) for wnid in WNIDS[:3]}
    train[WNIDS[0]].append(("n0_0.JPEG", b"broken"))
    larger = {wnid: class_images(wnid, 8) for wnid in WNIDS}
    larger[WNIDS[4]].append(("n4_0.JPEG", jpeg(71, 600, 520, quality=80)))
    truth = devkit(list(WNIDS[:3]), [1, 2, 3, 1, 2, 3])
    for name, data in {
        "ILSVRC2012_img_train.tar": nested(train),
        "ILSVRC2012_img_val.tar": tar_bytes((names[n], data) for n, data in val.items()),
        "ILSVRC2012_devkit_t12.tar.gz": gzip.compress(truth),
        "winter21_whole.tar.gz": gzip.compress(nested(larger)),
    }.items():
        Path(name).write_bytes(data)
    small_archive(Path("others.tar"))
    assert shards(["build", "others.tar", "--out", "others", "--workers", "0"]) == 0
    Path("data/shards-that-others-wrote").mkdir(parents=True)
    for shard in Path("others").glob("*.tar"):
        shard.rename(Path("data/shards-that-others-wrote") / shard.name)
    said = ""
    for command in commands(section("Make shards")):
        words = shlex.split(command)
        assert words[:3] == ["python", "-m", "shards"]
        here = ["--workers", "0"] if words[3] != "info" else []
        assert shards([*words[3:], *here]) == 0, command
        said += capsys.readouterr().out
    for name in re.findall(r"\w+\.parquet", section("Make shards")):
        assert Path("data/in21k", name).exists()
    line = re.search(r"`(left out, [^`]*): N`", section("Make shards"))[1]
    assert f"{line}: 1" in said
    sizes = format.open_set("data/in1k").manifest.splits
    assert {split: sum(shard.samples for shard in sizes[split]) for split in sizes} == {
        "train": 12,
        "val": 6,
    }


def test_rules_for_buckets_are_json():
    rules = [shlex.split(c)[-1] for c in COMMANDS if "put-bucket-lifecycle" in c]
    assert json.loads(rules[0])["Rules"][0]["AbortIncompleteMultipartUpload"]


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith(("pip ", "pytest"))])
def test_extras_and_markers_of_the_commands_exist(command):
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = {extra for names in re.findall(r"\.\[(.*?)\]", command) for extra in names.split(",")}
    assert extras <= settings["project"]["optional-dependencies"].keys()
    known = {
        line.partition(":")[0] for line in settings["tool"]["pytest"]["ini_options"]["markers"]
    }
    for expression in re.findall(r'-m "([^"]*)"', command):
        assert set(re.findall(r"\w+", expression)) - {"and", "or", "not"} <= known


def test_tree_names_every_folder_of_the_packages():
    tree = re.search(r"```\n(support/.*?)```", README, re.DOTALL)[1]
    shown, package = set(), ""
    for line in tree.splitlines():
        name = line.split()[0].rstrip("/")
        package = package if line.startswith(" ") else name
        shown.add(f"{package}/{name}" if line.startswith(" ") else name)
    real = {
        str(path.parent.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    assert real | {"benchmarks", "clusters", "tests", "docs"} == shown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_files_that_are_named_exist(page):
    text = page.read_text()
    links = re.findall(r"\]\(([^):#]+)\)", text) + re.findall(r'src="([^":]+)"', text)
    assert [link for link in links if not (page.parent / link).exists()] == []
    paths = re.findall(
        r"`((?:support|shards|vit|pipeline|tune|benchmarks|tests)/[\w/]*\.\w+)`", text
    )
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_tables_that_contributing_names_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for name, path in re.findall(r"`([A-Z]+)` in `([\w/]+\.py)`", text):
        assert re.search(rf"^{name}\b.*=", (ROOT / path).read_text(), re.MULTILINE), (name, path)
