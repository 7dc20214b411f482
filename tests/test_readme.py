"""README's commands exist and take the settings that they are shown with; its tree is the tree."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip() and not line.strip().startswith("#")
]


def test_set_up_takes_two_commands():
    assert COMMANDS[:2] == [
        "pip install -e . && python -m pipeline train demo",
        "pip install -e '.[test]' && pytest",
    ]


@pytest.mark.parametrize("command", [c for c in COMMANDS if not c.startswith("pip ")])
def test_command_exists_and_takes_its_settings(command):
    words = shlex.split(command)
    if words[0] == "python":
        words[0] = sys.executable
    else:
        words[0] = str(Path(sys.executable).parent / words[0])
    flags = {word.split("=")[0] for word in words if word.startswith("--")}
    # the command, without its settings and without folders that are not there
    plain = words[:1] + [
        word
        for before, word in zip(words, words[1:], strict=False)
        if word not in flags and before not in flags and "/" not in word
    ]
    result = subprocess.run(
        [*plain, "--help"], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    missing = {flag for flag in flags if flag.replace("_", "-") not in result.stdout}
    assert not missing, f"{missing} are not in the help of {' '.join(plain)}"


def test_extras_of_the_set_up_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {extra for found in re.findall(r"\.\[(.*?)\]", README) for extra in found.split(",")}
    assert extras <= project["optional-dependencies"].keys()


def test_tree_names_every_file_once():
    tree = re.search(r"```\n(shards/.*?)```", README, re.DOTALL)[1]
    shown, folder = set(), ""
    for line in tree.splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            folder = name if name.endswith("/") else ""
        if not name.endswith("/"):
            shown.add(name if not line.startswith(" ") else folder + name)
    real = {
        str(path.relative_to(ROOT))
        for package in ("shards", "vit", "pipeline", "tune", "benchmarks")
        for path in (ROOT / package).glob("*.py")
        if path.name != "__init__.py"
    }
    assert real - shown == set(), "files that the tree leaves out"
    assert {name for name in shown if not (ROOT / name).exists()} == set()
