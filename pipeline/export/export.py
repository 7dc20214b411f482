"""One export, from a checkpoint to a folder that another library opens.

    Source -> write -> open in its own library -> compare -> model card -> folder

The folder appears whole, after the check, or not at all.
"""

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pipeline.checkpoint import remote
from pipeline.export.card import card, write_classes
from pipeline.export.check import Agreement, agreement, obstacle, read_back, versioned
from pipeline.export.config import ExportConfig
from pipeline.export.formats import FORMATS
from pipeline.export.source import CLASSES_FILE, Source
from shards.dataset import store
from support.files import written

log = logging.getLogger(__name__)

CARD = "README.md"


def export(path: Path, out: str, config: ExportConfig) -> Agreement:
    """Write a checkpoint as the folder or prefix `out`, and return how its outputs agree.

    `path` is the folder of a run or of a checkpoint, or a file of weights. Raises ValueError if the
    format cannot hold the model, if `out` is not empty, or if a package is missing, and
    RuntimeError if the outputs differ by more than the tolerance of the format.
    """
    row = FORMATS[config.to]
    functions = row.functions()
    check_empty(out)
    log.info("export      %s", row.summary)
    source = Source.open(path, config)
    with made(out) as folder:
        functions.write(source, folder, config)
        found = checked(source, folder, config)
        log.info("checked     %s", found)
        if source.classes is not None:
            write_classes(source, folder / CLASSES_FILE)
        text = card(source, config, functions.usage(source, config), found)
        (folder / CARD).write_text(text)
    return found


def checked(source: Source, folder: Path, config: ExportConfig) -> Agreement:
    """Open an export and compare its outputs; RuntimeError if they differ."""
    row = FORMATS[config.to]
    reason = obstacle(row) if row.library else None
    if reason:
        network, reader = read_back(source, folder), f"this project, because {reason}"
    else:
        network = row.functions().opened(source, folder, config)
        reader = versioned(row.package) if row.package else "this project"
    found = agreement(source, network, reader, row.tolerance)
    if not found.holds:
        raise RuntimeError(
            f"the export computes something else than the checkpoint, so it was not kept: {found}"
        )
    return found


def check_empty(out: str) -> None:
    """Raise ValueError if there is something at `out`."""
    system, path = store.locate(out)
    if store.exists(system, path) or store.listing(system, path):
        raise ValueError(f"--out {store.absolute(out)} exists and is not empty; choose another")


@contextlib.contextmanager
def made(out: str) -> Iterator[Path]:
    """An empty folder that becomes `out`, a folder or a prefix in a store, if the block succeeds.

    What an upload that fails has put into the store is removed again.
    """
    if "://" not in out:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        with written(Path(out)) as folder:
            folder.mkdir()
            yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)
        upload(Path(temporary), out)


def upload(folder: Path, out: str) -> None:
    """Copy all files of a folder to a prefix in a store, or none."""
    place, mark, options = out.partition("?")
    parent, _, name = place.rstrip("/").rpartition("/")
    system, root = store.locate(out)
    files = sorted(folder.iterdir())
    try:
        for file in files:
            remote.upload(file, parent + mark + options, name)
    except BaseException:
        for file in files:
            remote.remove(system, f"{root}/{file.name}", store.absolute(out))
        raise
