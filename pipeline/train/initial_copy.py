"""Initial weights that were fetched from an address, where every node finds them.

    runs/NAME/init/model.safetensors, ...    the weights, without the state of a checkpoint
    runs/NAME/init/source.json               written last: address, size and SHA-256 of the files

The folder is that of the run, or that of the search for all of its trials. A copy stays, whatever
its address names later: a run that has no checkpoint yet starts from it again.
"""

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.checkpoint import remote
from pipeline.checkpoint.local import STATE
from pipeline.checkpoint.run_folder import INIT, RunFolder
from shards.dataset import store
from support.files import described, write_json, written
from support.redact import redact

log = logging.getLogger(__name__)

SOURCE = "source.json"


@dataclass(frozen=True, kw_only=True)
class InitialCopy:
    """A copy of weights in the folder of a run; it is sent to the workers."""

    home: RunFolder
    """The run or search."""
    name: str
    """Name of the file of weights; "" if the weights are the folder."""
    files: Mapping[str, tuple[int, str]]
    """Size and SHA-256 of each file."""

    @classmethod
    def find(cls, home: RunFolder, address: str) -> "InitialCopy | None":
        """The copy of what was at an address, complete and on this node; None without one."""
        content = json.loads(home.read(f"{INIT}/{SOURCE}") or "{}")
        if content.get("address") != redact(address):
            return None
        files = {name: tuple(facts) for name, facts in content["files"].items()}
        copy = cls(home=home, name=content["name"], files=files)
        try:
            copy.fetch()
        except (FileNotFoundError, ValueError) as error:
            log.warning("not used: %s", error)
            return None
        return copy

    @classmethod
    def make(cls, source: Path, home: RunFolder, address: str) -> "InitialCopy":
        """Copy a file or folder that was fetched from an address, in place of any other copy."""
        paths = sorted(source.iterdir()) if source.is_dir() else [source]
        paths = [path for path in paths if path.is_file() and not path.name.startswith(STATE)]
        home.remove(f"{INIT}/{SOURCE}")
        target, name = home.path / INIT, "" if source.is_dir() else source.name
        with written(target) as aside:
            aside.mkdir(parents=True)
            for path in paths:
                shutil.copyfile(path, aside / path.name)
            files = described(aside / path.name for path in paths)
            content = {"address": redact(address), "name": name, "files": files}
            write_json(aside / SOURCE, content)
        if home.uri:
            remote.clear(home.uri, INIT)
            for file in (*files, SOURCE):
                remote.upload(target / file, home.uri, INIT)
        return cls(home=home, name=name, files=files)

    @property
    def place(self) -> str:
        """The folder or prefix that every node must see."""
        return store.join(self.home.place, INIT)

    @property
    def path(self) -> Path:
        """The file or folder on this node; a node may keep its copy elsewhere than the driver."""
        return self.home.path / INIT / self.name

    def fetch(self) -> None:
        """Copy it from the store to this node, unless an unchanged copy is here.

        Raises ValueError if it is damaged.
        """
        target = self.home.path / INIT
        if self._is_in(target):
            return
        if not self.home.uri:
            raise ValueError(f"{target} is damaged: files are missing, or are not what was copied")
        target.parent.mkdir(parents=True, exist_ok=True)
        with written(target) as aside:
            aside.mkdir()
            for name in self.files:
                remote.download(self.home.uri, INIT, aside / name)
            if not self._is_in(aside):
                raise ValueError(f"{store.absolute(self.place)} is damaged: start the run again")

    def _is_in(self, folder: Path) -> bool:
        """Whether the files of a folder are those that were copied."""
        paths = [folder / name for name in self.files]
        if not all(path.is_file() for path in paths):
            return False
        return described(paths) == self.files
