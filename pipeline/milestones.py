"""Evaluated checkpoints are recorded as they come, in a thread that training never waits for.

    report of a checkpoint -> note -> models and page -> journal -> the place that counts

Several reports that wait are one pass, which looks at what is there. What a pass could not do, the
next one does. When the block has ended well, the last pass is waited for.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator

from pipeline.report.run_page import write_report
from pipeline.report.run_state import RUNNING
from pipeline.run_models import record_models
from pipeline.tracking import journal
from pipeline.train.job import Job
from support.lease import LeaseLost
from support.threads import beside

log = logging.getLogger(__name__)

# seconds between two looks whether there is something to record
PAUSE_S = 0.5


@contextlib.contextmanager
def milestones(job: Job, publish: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """During the block record the models and the page of the run as its checkpoints come.

    Gives a function that states that there may be a new checkpoint. `publish` puts journal and page
    where they count. The end of the record is left to whoever ends it.
    """
    due, shown = threading.Event(), set()
    due.set()  # a driver that was killed may have left something to record

    def follow(closing: threading.Event) -> None:
        is_last = False
        while not is_last:
            is_last = closing.wait(PAUSE_S)
            if not due.is_set():
                continue
            due.clear()
            try:
                record(job, shown, publish)
            except LeaseLost:  # the record is that of another driver now
                return
            except Exception as error:  # noqa: BLE001 - the next checkpoint is another chance
                log.warning("a checkpoint could not be recorded yet: %s", error)

    with beside(follow, "milestones"):
        try:
            yield due.set
        except BaseException:
            due.clear()  # what ends by an error or by Ctrl-C waits for no store
            raise


def record(job: Job, shown: set[str], publish: Callable[[], None]) -> None:
    """Record the models; and the page, unless it has `shown` all of these digests."""
    evaluated = {checkpoint.digest for checkpoint in record_models(job)}
    if evaluated - shown:
        journal.write_artifact(job.dir, write_report(job.dir, state=RUNNING))
        publish()
        shown |= evaluated
