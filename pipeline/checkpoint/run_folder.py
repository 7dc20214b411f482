"""The folder of a run: one that every node sees, or a prefix in a store with a copy on each node.

    runs_dir /shared/runs        -> /shared/runs/NAME
    runs_dir s3://bucket/runs    -> s3://bucket/runs/NAME, copied to ~/.cache/vit-pipeline/.../NAME

    NAME/config.json  lease.json  metrics.jsonl  events.jsonl  mlflow.json  refused.jsonl
    NAME/result.json  report.html  checkpoints/  evaluations/  probes/  init/  models/
    NAME/class_images.json   of this copy alone: counted from the data when needed

With a store the driver works on its copy. It takes the store's files when it starts, and puts its
own there before it depends on them: before a checkpoint becomes visible, and at the end. So a run
continues on another machine, and loses nothing with the disk of this one.
"""

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pyarrow import fs as pafs

from pipeline.checkpoint import local, remote
from pipeline.checkpoint.checkpoints import Checkpoints
from shards.dataset import store
from shards.dataset.store import with_retries
from support.files import cache_dir, remove_folder, write_bytes
from support.lease import LEASE, PATIENT_S

CHECKPOINTS = "checkpoints"
PROBES = "probes"
INIT = "init"
MODELS = "models"
LOCK = "run.lock"
SEARCH = "search.json"
# what tells a run, a run that has lost that, and a search
BEGUN = (local.CONFIG, CHECKPOINTS, SEARCH)
# not copied to a new driver: large, of one process alone, or runs of their own below a search
NOT_PULLED = (CHECKPOINTS, PROBES, INIT, MODELS, "samples", "trials", "tune", LEASE)
# the journal of a run, which tells a copy of it from one of another past
JOURNAL = ("metrics.jsonl", "events.jsonl")

# two threads of a driver may push the journal: an older one must not replace a newer one
PUSHING = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """Where a run is, for the driver and for every worker."""

    uri: str | None
    """The prefix in a store; None for a folder."""
    folder: str
    """The folder; with a URI, the name of the copy in the cache of each node."""

    @classmethod
    def of(cls, runs_dir: str, name: str) -> "RunFolder":
        """The place of a run."""
        if "://" not in runs_dir:
            return cls(uri=None, folder=str(Path(runs_dir) / name))
        digest = hashlib.sha256(runs_dir.encode()).hexdigest()[:16]
        return cls(uri=store.join(runs_dir, name), folder=f"{digest}/{name}")

    @classmethod
    def at(cls, location: str) -> "RunFolder":
        """The run in a folder or at a URI."""
        if "://" not in location:
            path = Path(location).absolute()
            return cls.of(str(path.parent), path.name)
        place, mark, options = location.partition("?")
        runs_dir, _, name = place.rstrip("/").rpartition("/")
        return cls.of(runs_dir + mark + options, name)

    @property
    def path(self) -> Path:
        """The folder on this node."""
        return cache_dir() / self.folder if self.uri else Path(self.folder)

    @property
    def place(self) -> str:
        """The folder or URI where the run is."""
        return self.uri or self.folder

    @property
    def location(self) -> str:
        """The place as people know it, without secrets."""
        return store.absolute(self.uri) if self.uri else self.folder

    @property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints of the run."""
        uri = store.join(self.uri, CHECKPOINTS) if self.uri else None
        return Checkpoints(folder=self.path / CHECKPOINTS, uri=uri)

    @property
    def models(self) -> Checkpoints:
        """The checkpoints whose weights the driver keeps, because they are models of the record.

        They have a folder of their own: workers remove the checkpoints that they do not need.
        """
        return replace(self.checkpoints, folder=self.path / MODELS)

    def is_begun(self) -> bool:
        """Whether a run or a search has been started here."""
        system, root = store.locate(self.place)
        look = partial(system.get_file_info, [f"{root}/{name}" for name in BEGUN])
        return any(
            info.type != pafs.FileType.NotFound for info in with_retries(look, self.location)
        )

    def read(self, name: str, pauses_s: Sequence[float] = ()) -> bytes | None:
        """Content of a file where it counts; None if there is none.

        `pauses_s` are the seconds between attempts, by default half a minute in all.
        """
        system, path = store.locate(store.join(self.place, name))
        if not with_retries(lambda: store.exists(system, path), self.location, pauses_s):
            return None
        return with_retries(lambda: store.read_bytes(system, path), self.location, pauses_s)

    def write(self, name: str, data: bytes, pauses_s: Sequence[float] = PATIENT_S) -> None:
        """Write a file, atomically, where it counts; by default with patience."""
        if self.uri:
            system, path = store.locate(store.join(self.uri, name))
            if store.is_local(system):  # file://; object stores have no folders
                store.make_folder(system, path.rpartition("/")[0])
            put = partial(store.write_bytes, system, path, data)
            with_retries(put, self.location, pauses_s)
        else:
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(self.path / name, data)

    def remove(self, name: str) -> None:
        """Remove a file where it counts and here, if it exists."""
        (self.path / name).unlink(missing_ok=True)
        if self.uri:
            system, path = store.locate(store.join(self.uri, name))
            remote.remove(system, path, self.location)

    def pull(self, *, holds_lease: bool = True) -> None:
        """Make the copy on this node continue the files of the store.

        Whoever holds the lease sweeps what a killed driver was writing. Without the lease a driver
        may be writing it now, and it stays.

        A copy whose journal goes on where that of the store ends is kept: its driver died here.
        Any other copy is of another past of the run, and is replaced. Copies of checkpoints stay:
        a worker of this machine may use them, and only by their digest. So do models, which are
        compared with it too, and probes, whose checkpoints are named by what they are made of.
        """
        if not self.uri:
            return
        system, root = store.locate(self.uri)
        files = {}
        for path in with_retries(partial(listed, system, root), self.location):
            name = str(Path(path).relative_to(root))
            if path.endswith(store.TEMPORARY):
                if holds_lease:
                    store.discard(system, path)
            elif Path(name).parts[0] not in NOT_PULLED and not name.startswith("."):
                files[name] = path
        contents = {
            name: with_retries(partial(store.read_bytes, system, path), self.location)
            for name, path in files.items()
        }
        journal = contents.keys() & JOURNAL
        if not contents or not all(self._continues(name, contents[name]) for name in journal):
            for path in self.path.iterdir():
                if path.suffix == ".lock" or path.name in (CHECKPOINTS, PROBES, MODELS):
                    continue
                remove_folder(path) if path.is_dir() else path.unlink()
        for name, data in contents.items():
            target = self.path / name
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                write_bytes(target, data)

    def _continues(self, name: str, beginning: bytes) -> bool:
        """Whether a file of the copy begins with these bytes."""
        path = self.path / name
        return path.exists() and path.read_bytes().startswith(beginning)

    def push(self, *names: str, pauses_s: Sequence[float] = PATIENT_S) -> None:
        """Put files and folders of the copy on this node into the store, each one atomically."""
        if not self.uri:
            return
        with PUSHING:
            for name in names:
                path = self.path / name
                for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                    if file.is_file():
                        relative = str(file.relative_to(self.path))
                        self.write(relative, file.read_bytes(), pauses_s)


def fetched_run(location: str) -> Path:
    """The folder of a run or search; the files of one in a store are copied here first.

    Raises FileNotFoundError if a prefix in a store holds neither: it may have any number of files.
    """
    if "://" not in location:
        return Path(location).absolute()
    run = run_of(location)
    if not run.is_begun():
        raise FileNotFoundError(
            f"{store.absolute(location)} is no run, checkpoint or file of weights: "
            f"{run.location} has none of {', '.join(BEGUN)}"
        )
    run.path.mkdir(parents=True, exist_ok=True)
    run.pull(holds_lease=False)
    return run.path


def fetched_model(location: str) -> Path:
    """The folder of a run or of a checkpoint, or a file; what is in a store is copied here first.

    Of a run at a URI it is the checkpoint that it reports. Files of other programs in a store are
    found by their names (`pipeline.checkpoint.published`). Raises FileNotFoundError if there is no
    complete checkpoint at the URI.
    """
    if "://" not in location:
        return fetched_run(location)
    from pipeline.checkpoint.published import fetched_weights  # imports PyTorch

    if published := fetched_weights(location):
        return published
    fetched_run(location)
    run, name = run_of(location), RunFolder.at(location).path.name
    found = run.checkpoints.all()
    if local.NAME.fullmatch(name):
        found = [one for one in found if one.path.name == name]
    checkpoint = local.chosen(found)
    if not checkpoint:
        raise FileNotFoundError(f"{store.absolute(location)} has no complete checkpoint")
    return run.checkpoints.fetch(checkpoint).path


def run_of(location: str) -> RunFolder:
    """The run at a URI, or that of the checkpoint at a URI."""
    run = RunFolder.at(location)
    if not local.NAME.fullmatch(run.path.name):
        return run
    place, mark, options = location.partition("?")
    return RunFolder.at(place.rstrip("/").rsplit("/", 2)[0] + mark + options)


def listed(system: pafs.FileSystem, root: str) -> list[str]:
    """Paths of all files under a prefix."""
    selector = pafs.FileSelector(root, recursive=True, allow_not_found=True)
    infos = system.get_file_info(selector)
    return [info.path for info in infos if info.type == pafs.FileType.File]
