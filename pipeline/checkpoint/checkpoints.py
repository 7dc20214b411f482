"""The checkpoints of a run, in the one place that counts.

    runs_dir is a folder that every node sees      the checkpoints are there
    runs_dir is a URI                              they are in the store; each node keeps copies

Copies on a node are only used if their digest is that of the checkpoint in the store.
"""

from dataclasses import dataclass
from pathlib import Path

from pipeline.checkpoint import local, remote
from pipeline.checkpoint.local import Checkpoint
from shards.dataset import store
from support.files import remove_folder


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """The checkpoints of one run."""

    folder: Path
    """Where they are, or where this node keeps its copies."""
    uri: str | None = None
    """Where they are in a store."""

    def all(self) -> list[Checkpoint]:
        """All complete checkpoints, oldest first."""
        if self.uri:
            return remote.checkpoints(self.uri, self.folder)
        return local.checkpoints(self.folder)

    def latest(self) -> Checkpoint | None:
        """The newest complete checkpoint."""
        return local.latest(self.all())

    def chosen(self) -> Checkpoint | None:
        """The one that the run reports and hands on; see `local.chosen`."""
        return local.chosen(self.all())

    def location(self, checkpoint: Checkpoint) -> str:
        """Where a checkpoint is, without secrets."""
        if self.uri:
            return store.absolute(store.join(self.uri, checkpoint.path.name))
        return str(checkpoint.path)

    def fetch(self, checkpoint: Checkpoint, *, only: str = "") -> Checkpoint:
        """Make a checkpoint available at its path on this node, and check every byte of it.

        With `only`, just the files that begin so, beside its settings. Raises ValueError if its
        files are damaged.
        """
        if not self.uri:
            Checkpoint.open(checkpoint.path).verify(only)
        elif not is_copy(checkpoint, only):
            if checkpoint.path.exists():
                remove_folder(checkpoint.path)
            remote.fetch(checkpoint, self.uri, only)
        return checkpoint

    def fetch_weights(self, checkpoint: Checkpoint) -> Checkpoint:
        """Make a checkpoint without its training state available at its path on this node.

        A copy that is there is not read again: it appeared as a whole, after every byte of it was
        checked. Raises ValueError if the files in a store are damaged.
        """
        if not self.uri or has_weights(checkpoint.path, checkpoint.digest):
            return checkpoint
        try:
            self.fetch(checkpoint, only=local.MODEL)
        except OSError:
            if not has_weights(checkpoint.path, checkpoint.digest):  # another thread was faster
                raise
        return checkpoint

    def drop_copies(self, but: Checkpoint) -> None:
        """Remove the copies of all other checkpoints from this node."""
        for path in self.folder.glob("*step-*") if self.uri else ():
            if path != but.path:
                remove_folder(path)

    def prune(self, keep: int) -> None:
        """Delete all but the latest `keep` checkpoints and the chosen one."""
        for checkpoint in local.superfluous(self.all(), keep):
            self.delete(checkpoint)

    def delete(self, checkpoint: Checkpoint) -> None:
        """Delete a checkpoint."""
        if self.uri:
            remote.delete(checkpoint, self.uri)
        if checkpoint.path.exists():
            remove_folder(checkpoint.path)

    def clear_unfinished(self) -> None:
        """Remove what killed processes left half written, half copied or half removed."""
        local.clear_unfinished(self.folder)


def has_weights(path: Path, digest: str | None) -> bool:
    """Whether a folder has the weights of the checkpoint of a digest; None: of any."""
    try:
        copy = Checkpoint.open(path, only=local.MODEL)
    except ValueError:  # none, cut off
        return False
    return digest in (None, copy.digest)


def is_copy(checkpoint: Checkpoint, only: str = "") -> bool:
    """Whether an unchanged copy of the checkpoint, or of files of it, is at its path."""
    try:
        copy = Checkpoint.open(checkpoint.path, only=only)
        copy.verify(only)
    except ValueError:  # none, cut off, damaged
        return False
    return copy.digest == checkpoint.digest
