"""A checkpoint while it is written, by one worker or by several.

    begin (one worker) -> add (each worker its files) -> commit (one worker): now it is there

The files are collected in a hidden folder; with a store each worker puts its own there. Nobody sees
the checkpoint before `commit` has written meta.json, which names every file.
"""

import contextlib
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.checkpoint import remote
from pipeline.checkpoint.checkpoints import Checkpoints
from pipeline.checkpoint.local import CONFIG, FORMAT, META, Checkpoint
from support.files import described, flush, remove_folder, write_json
from support.settings import Settings

Files = dict[str, tuple[int, str]]
"""Size in bytes and SHA-256 of each file, by its name."""


@dataclass(frozen=True, kw_only=True)
class Draft:
    """The checkpoint of one step."""

    checkpoints: Checkpoints
    step: int

    @property
    def name(self) -> str:
        """Name of the checkpoint."""
        return f"step-{self.step:09d}"

    @property
    def folder(self) -> Path:
        """Where its files are until it is committed."""
        return self.checkpoints.folder / f".{self.name}.tmp"

    def begin(self) -> None:
        """Remove what an earlier attempt has left of this step."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.checkpoints.uri:
            remote.clear(self.checkpoints.uri, self.name)

    def add(self, write: Callable[[Path], list[Path]], *, keep: bool = True) -> Files:
        """Write files into the folder that `write` is called with; returns what they are.

        With a store, `keep` keeps a copy of them on this node. Raises OSError with the step and the
        room that is left.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            paths = write(self.folder)
        except OSError as error:
            free = shutil.disk_usage(self.checkpoints.folder).free
            shutil.rmtree(self.folder, ignore_errors=True)
            raise OSError(
                f"checkpoint of step {self.step} could not be written ({error}; {free:,} bytes are "
                f"free there); the earlier ones are unchanged: make room and start the run again"
            ) from error
        files = described(paths)
        for path in paths if self.checkpoints.uri else ():
            remote.upload(path, self.checkpoints.uri, self.name)
            if not keep:
                path.unlink()
        if not keep and self.checkpoints.uri:
            with contextlib.suppress(OSError):  # other workers of this node are still writing
                self.folder.rmdir()
        return files

    def commit(
        self,
        files: Files,
        *,
        provenance: Mapping[str, object],
        samples: int,
        metrics: Mapping[str, float],
        config: Settings,
        classes: tuple[str, ...],
        fingerprint: str,
    ) -> Checkpoint:
        """Make the checkpoint visible, with the files that all workers have added; returns it.

        `provenance` is that of the driver (`local.provenance`), whose code the workers run.
        """
        meta = {
            "format": FORMAT,
            "step": self.step,
            "samples": samples,
            "metrics": dict(metrics),
            "fingerprint": fingerprint,
            **provenance,
            "classes": classes,
        }

        def write(folder: Path) -> list[Path]:
            write_json(folder / CONFIG, config.flat())
            return [folder / CONFIG]

        def write_meta(folder: Path) -> list[Path]:
            write_json(folder / META, meta | {"files": files | added})
            return [folder / META]

        added = self.add(write)
        self.add(write_meta)
        path = self.checkpoints.folder / self.name
        if path.exists():  # of an earlier attempt
            remove_folder(path)
        self.folder.rename(path)
        flush(path.parent)
        return Checkpoint.of(path, (path / META).read_bytes(), (path / CONFIG).read_bytes())
