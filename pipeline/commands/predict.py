"""The command that classifies images: `python -m pipeline predict CHECKPOINT IMAGE...`."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import tyro

from shards.dataset import store
from support.console import Progress, open_console

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.evaluation.model import EvalModel
    from pipeline.predict.table import Table
    from pipeline.predict.workers import Classified

log = logging.getLogger(__name__)

# images that cannot be read and are named at the end
NAMED = 5


@dataclass(frozen=True, kw_only=True)
class Predict:
    """Classify images: the most likely classes of each, with their names and probabilities.

    An image is prepared as in an evaluation with the centre crop. All cores are used, or all GPUs,
    or all nodes of the Ray cluster at RAY_ADDRESS. Images that cannot be read are named.
    """

    interrupted: ClassVar[str] = "the same command begins anew"
    checkpoint: tyro.conf.Positional[str]
    """Folder or URI of a run or of a checkpoint, or a file of weights."""
    images: tyro.conf.Positional[tuple[str, ...]]
    """Image files, folders with all images below them, or s3:// or gs:// URIs of both."""
    out: str | None = None
    """Table to write instead of lines: a path or URI that ends with .csv or .parquet."""
    top: int = 5
    """Classes of each image, at most all of the head."""
    classes: str | None = None
    """Classes of the model's head, if its file does not list them: a list that ships with the
    project, such as goog, or a file of WordNet ids. Heads of known sizes are recognised."""
    verbose: bool = False
    """Show the output of Ray and of the other libraries."""

    def __call__(self) -> int:
        """Classify; returns 2, as for other bad input, if no image could be read."""
        open_console(verbose=self.verbose)
        if self.top < 1:
            raise ValueError(f"--top ({self.top}) must be at least 1")
        images = [each if "://" in each else store.absolute(each) for each in self.images]
        from pipeline.predict import files

        files.check(images)
        from pipeline.predict import table, workers

        if self.out:
            table.check(self.out)
        eval_model, classes = self._model()
        total, top = files.count(images), min(self.top, len(classes))
        rows = table.Table(classes, top)
        with (
            workers.classified(eval_model, top, images, total, verbose=self.verbose) as answers,
            table.written(self.out, rows.schema) if self.out else shown(rows) as add,
        ):
            progress = Progress("predict") if self.out else None
            done, unread, names = taken(answers, rows, add, total, progress)
        if self.out:
            log.info("table       %s", store.absolute(self.out))
        log.info("classified  %s of %s images", f"{done - unread:,}", f"{done:,}")
        if unread:
            rest = f" and {unread - len(names):,} more" if unread > len(names) else ""
            log.warning("not read    %s%s", ", ".join(names), rest)
        return 0 if unread < done else 2

    def _model(self) -> tuple["EvalModel", tuple[str, ...]]:
        """The model, and the wnids of its head's outputs."""
        from pipeline.checkpoint.run_folder import fetched_model
        from pipeline.evaluation.model import EvalModel

        eval_model = EvalModel.open(fetched_model(self.checkpoint))
        return eval_model, eval_model.head_classes(self.classes, None)


def taken(
    answers: "Classified",
    rows: "Table",
    add: Callable[["pa.RecordBatch"], None],
    total: int,
    progress: Progress | None,
) -> tuple[int, int, list[str]]:
    """Add all answers to what shows them.

    Returns the number of images, and of those that could not be read, with the first of their
    names.
    """
    done, unread, names = 0, 0, []
    for files, guesses in answers:
        add(rows.rows(files, guesses))
        faulty = [file.name for file, fault in zip(files, guesses.faults, strict=True) if fault]
        names += faulty[: NAMED - len(names)]
        done, unread = done + len(files), unread + len(faulty)
        if progress:
            progress(done, max(done, total))
    return done, unread, names


@contextlib.contextmanager
def shown(rows: "Table") -> Iterator[Callable[["pa.RecordBatch"], None]]:
    """A function that shows rows as lines."""

    def add(batch: "pa.RecordBatch") -> None:
        for row in batch.to_pylist():
            log.info("%s", "\n".join(lines(row, rows.top)))

    yield add


def lines(row: Mapping[str, object], top: int) -> Iterator[str]:
    """The lines about an image."""
    yield str(row["path"])
    if row["error"]:
        yield f"  cannot be read: {row['error']}"
        return
    for place in range(1, top + 1):
        wnid, name, share = (row[f"{column}{place}"] for column in ("class", "name", "p"))
        yield f"  {share:.4f}  {wnid}" + (f"  {name}" if name != wnid else "")
