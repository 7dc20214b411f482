"""What every node of a cluster must share with the driver: the run's folder, its data, its code.

    driver: with shared(folder, data=..., init_from=...) as view:    # ValueError names the node
                ... train, and send the view to the workers
    worker: view.check()                         # for a node that has joined since then

The driver shows itself by a marker in the folder of the run, which a node with another disk does
not find. To compare another thing, add it to `View.here`, and its message to `View._differences`.
"""

import contextlib
import hashlib
import importlib.metadata
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from shards.build.nodes import WHERE, finds, marked, size
from shards.build.ray_map import alive, listed, on_every_node, this_node
from shards.dataset import store
from shards.dataset.format import MANIFEST
from shards.dataset.store import with_retries
from support import code

# what decides the figures of a run, or what nodes say to each other
LIBRARIES = ("torch", "ray", "numpy", "pyarrow")


@dataclass(frozen=True, kw_only=True)
class View:
    """What the driver sees, in figures that a node can compare with what it sees itself."""

    folder: str
    """Folder or URI of the run."""
    marker: str
    """Name of the driver's marker in it."""
    data: Mapping[str, str | None]
    """Hash of the manifest of each shard set, by its location; None where there is none."""
    weights: Mapping[str, int | None]
    """Size of the initial weights by their location, None if they are missing; empty without."""
    versions: Mapping[str, str]
    """Versions of Python and of the libraries."""
    code: str
    """Hash of the project's Python files."""
    node: str
    """The node of the driver."""

    @classmethod
    def here(cls, folder: str, marker: str, data: Iterable[str], weights: Iterable[str]) -> "View":
        """What this node sees; OSError where storage fails."""
        return cls(
            folder=folder,
            marker=marker,
            data={location: manifest_hash(location) for location in data},
            weights={location: size(location) for location in weights},
            versions=versions(),
            code=code.fingerprint(),
            node=this_node(),
        )

    def faults(self, node: str) -> list[str]:
        """What this process sees otherwise than the driver, in sentences that name its node."""
        try:
            return self._compared(node)
        except OSError as error:
            reason = str(error).partition("\n")[0]
            return [
                f"node {node} cannot read what the run needs ({reason}): give it the credentials "
                f"and the network that the driver has"
            ]

    def check(self) -> None:
        """Raise ValueError if the node of this process sees something else than the driver.

        Nothing is compared on the node of the driver itself, where somebody may be at work on the
        code. The initial weights are not compared: a run that has a checkpoint needs them no more.
        """
        if (node := this_node()) == self.node:
            return
        if faults := replace(self, weights={})._compared(node):
            raise ValueError(listed(faults))

    def _compared(self, node: str) -> list[str]:
        """The differences; OSError where storage fails for long."""
        where = store.absolute(self.folder)

        def look() -> tuple[View, bool]:
            here = View.here(self.folder, self.marker, self.data, self.weights)
            return here, finds(self.folder, self.marker)

        here, seen = with_retries(look, where)
        return list(self._differences(here, node, seen=seen))

    def _differences(self, here: "View", node: str, *, seen: bool) -> Iterator[str]:
        """The sentences about a node that sees `here`."""
        if not seen:
            place = store.absolute(self.folder)
            yield f"runs_dir: {place} is not seen by node {node}: give {WHERE}"
        for what, expected, found, where in (
            ("shard set", self.data, here.data, WHERE),
            ("init_from", self.weights, here.weights, "a path that every node sees"),
        ):
            for location, value in found.items():
                place = store.absolute(location)
                if value is None and expected[location] is not None:
                    yield f"{what} {place} is not seen by node {node}: give {where}"
                elif value != expected[location]:
                    yield (
                        f"{what} {place} is another on node {node} than on the driver's: "
                        f"copy it anew, or give {where}"
                    )
        for name, version in here.versions.items():
            if version != self.versions[name]:
                yield (
                    f"node {node} has {name} {version}, the driver has {self.versions[name]}: "
                    f"install the same on all nodes"
                )
        if here.code != self.code:
            yield (
                f"node {node} runs other code of this project than the driver: install the same "
                f"on all nodes, or leave it to the driver to send its own (without a working_dir "
                f"of the job)"
            )


@contextlib.contextmanager
def shared(folder: str, *, data: Sequence[str], init_from: str | None = None) -> Iterator[View]:
    """Check that all nodes see what the driver sees, with Ray running; the marker stays meanwhile.

    Args:
        folder: Folder or URI of the run; made if it is missing.
        data: Locations of all shard sets of the run.
        init_from: Location of the initial weights, if the run has any.

    Raises:
        ValueError: A node sees something else, or has not answered in time; it is named.
    """
    weights = [init_from] if init_from else []
    with marked(folder) as marker:
        view = View.here(folder, marker, data, weights)
        if len(alive()) > 1:
            answers = on_every_node(View.faults, view)
            if faults := [fault for found in answers for fault in found]:
                raise ValueError(listed(faults))
        yield view


def manifest_hash(location: str) -> str | None:
    """Hash of the manifest of a shard set; None if there is none."""
    system, root = store.locate(location)
    try:
        return hashlib.sha256(store.read_bytes(system, f"{root}/{MANIFEST}")).hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        return None


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries here; builds of one version count as the same."""
    installed = {name: importlib.metadata.version(name).partition("+")[0] for name in LIBRARIES}
    return {"python": ".".join(platform.python_version_tuple()[:2]), **installed}
