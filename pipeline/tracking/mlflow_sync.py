"""Sends the record of a run to MLflow, from a thread that nothing waits for.

    journal -> Sender, again and again -> the server

A server that is down, slow, full or faulty is retried until the run ends, and later by
`python -m pipeline track sync RUN`.
"""

import contextlib
import logging
import threading
import time
from pathlib import Path

from pipeline.checkpoint.checkpoints import Checkpoints
from pipeline.tracking.mlflow_client import FAILURES
from pipeline.tracking.refusals import RunRefused, brief
from pipeline.tracking.sender import Sender
from support.files import AlreadyLocked, locked

log = logging.getLogger(__name__)

LOCK = "mlflow.lock"
# error codes of a server that answers, and wants somebody else
DENIALS = ("PERMISSION_DENIED", "UNAUTHENTICATED")
# seconds between two looks at the files, and the longest pause between two attempts
PAUSE_S, MAX_PAUSE_S = 0.5, 30.0
# seconds that the end of a run waits for a failing server, and for one that takes all that long
PATIENCE_S, SLOW_S = 20.0, 300.0


class MlflowSync:
    """A thread that keeps sending during the run."""

    def __init__(self, run_dir: Path, models: Checkpoints | None = None) -> None:
        """Start sending; `models` as in `Sender`."""
        self._dir, self._models = run_dir, models
        self._closing = threading.Event()
        self._failing_since: float | None = None
        self._failure = self._reported = ""
        self._given_up = False
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Send what is left; waits for a failing server for PATIENCE_S, for any for SLOW_S."""
        self._closing.set()
        closed = time.monotonic()
        while self._thread.is_alive():
            self._thread.join(0.1)
            since, now = self._failing_since, time.monotonic()
            is_slow = now - closed > SLOW_S
            if is_slow or (since is not None and now - max(since, closed) > PATIENCE_S):
                self._given_up = True
                log.warning(
                    "MLflow %s; the record is on disk; to send it later, run "
                    "python -m pipeline track sync %s",
                    *(self._failure if since else f"is not done after {SLOW_S:.0f} s", self._dir),
                )
                return

    def _work(self) -> None:
        while not self._given_up:
            try:
                with sending_lock(self._dir):
                    return self._keep_sending(Sender(self._dir, self._models))
            except (AlreadyLocked, *FAILURES) as error:  # a `track sync` that will end, a full disk
                self._fail(error)
                time.sleep(PAUSE_S)

    def _keep_sending(self, sender: Sender) -> None:
        pause = PAUSE_S
        while not self._given_up:
            closing = self._closing.is_set()
            try:
                sender.send()
                pause, self._failing_since, self._reported = PAUSE_S, None, ""
                if closing:
                    return
            except FAILURES as error:
                pause = min(2 * pause, MAX_PAUSE_S)
                self._fail(error, sender.address)
            # the end of the run waits for this, so it retries more often
            if self._closing.wait(pause):
                time.sleep(PAUSE_S)

    def _fail(self, error: BaseException, address: str = "this machine") -> None:
        """Note a failure; logs one line per kind of failure, not per attempt."""
        self._failing_since = self._failing_since or time.monotonic()
        self._failure = described(error, address)
        if self._reported != type(error).__name__:
            self._reported = type(error).__name__
            text = "MLflow %s; the run continues, its record will be sent later"
            log.warning(text, self._failure)


def described(error: BaseException, address: str) -> str:
    """What is wrong with MLflow at an address, in words that follow its name."""
    is_refusal = isinstance(error, RunRefused) or getattr(error, "error_code", "") in DENIALS
    return f"at {address} {'refuses the record' if is_refusal else 'fails'}: {brief(error)}"


def sync(run_dir: Path, models: Checkpoints | None = None) -> int:
    """Send the rest of a run's record; 0 if the server then has all of it, otherwise 1.

    `models` as in `Sender`.
    """
    with sending_lock(run_dir):
        sender = Sender(run_dir, models)
        before = sender.left()
        try:
            sender.send()
        except FAILURES as error:
            log.error(
                "MLflow %s; %d records and %d events are left, nothing is lost",
                *(described(error, sender.address), *sender.left()),
            )
            return 1
    log.info("sent %d records and %d events to %s", *before, sender.address)
    return 0


def sending_lock(run_dir: Path) -> contextlib.AbstractContextManager[None]:
    """Lock to be the only process that sends this record; AlreadyLocked if another one does."""
    if not run_dir.is_dir():
        raise FileNotFoundError(f"{run_dir} is not there; give the folder of a run")
    message = f"another process sends the record of {run_dir} already; wait until it ends"
    return locked(run_dir / LOCK, message)
