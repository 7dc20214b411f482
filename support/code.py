"""The project's own code: where its packages are, what is in them, and a copy to send elsewhere."""

import contextlib
import hashlib
import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("support", "shards", "vit", "pipeline", "tune")
# what follows a commit if files differ from it
DIRTY = "-dirty"


def folders() -> list[Path]:
    """The folder of each package that can be imported here, from a checkout or from a wheel."""
    specs = filter(None, map(importlib.util.find_spec, PACKAGES))
    return [Path(spec.submodule_search_locations[0]) for spec in specs]


def fingerprint() -> str:
    """Hash of the project's Python files as they are imported in this process."""
    hashed = hashlib.sha256()
    for folder in folders():
        for path in sorted(folder.rglob("*.py")):
            hashed.update(f"{path.relative_to(folder.parent)}\0".encode())
            hashed.update(hashlib.sha256(path.read_bytes()).digest())
    return hashed.hexdigest()


def commit() -> str | None:
    """The full hash of the commit of a checkout, with DIRTY if files differ.

    None without git, as in a wheel.
    """
    here = Path(__file__)
    # an installed copy may lie inside a checkout of something else
    tracked = ["git", "ls-files", "--error-unmatch", here.name]
    described = ["git", "describe", "--always", "--exclude=*", f"--dirty={DIRTY}", "--abbrev=40"]
    try:
        for command in (tracked, described):
            found = subprocess.run(
                command, cwd=here.parent, capture_output=True, text=True, check=False
            )
            if found.returncode:
                return None
    except FileNotFoundError:  # no git on this machine
        return None
    return found.stdout.strip()


def shortened(commit: str) -> str:
    """A commit for people; "unknown" and the like stay."""
    return re.sub(r"^([0-9a-f]{12})[0-9a-f]+", r"\1", commit)


@contextlib.contextmanager
def copied() -> Iterator[Path]:
    """A folder with a copy of the packages and nothing else, for the block."""
    with tempfile.TemporaryDirectory(prefix="code-") as target:
        for folder in folders():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(folder, Path(target) / folder.name, ignore=ignored)
        yield Path(target)
