"""An MLflow server whose data outlives its machine, such as the head of a cluster.

    serve("s3://bucket/runs/mlflow", port)

Artifacts are written to that place. The SQLite database is a file of this machine, of which a copy
is put there every minute in which it has changed, and at the end. A server on another machine
starts with the copy; what was sent after it is sent again from the record of each run.
"""

import contextlib
import hashlib
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence

import psutil

from pipeline.checkpoint.run_folder import RunFolder
from shards.dataset import store
from support.files import AlreadyLocked, write_bytes
from support.lease import Lease, LeaseLost, leased
from support.threads import beside

log = logging.getLogger(__name__)

DATABASE, MARK = "mlflow.db", "mlflow.db.sha256"
READY = "MLflow is ready"
# an environment variable by which the processes of a server on a database are known
SERVED = "VIT_PIPELINE_MLFLOW_DATABASE"
# seconds between two copies, which may take no larger share of the time than this
COPY_S, MAX_SHARE = 60.0, 0.05
# seconds in which the server must answer, and between two questions whether it does
START_S, POLL_S = 120.0, 0.5
# seconds that it gets to end
END_S = 20.0


def serve(place: str, port: int) -> int:
    """Serve MLflow on a port of this machine alone, until SIGTERM or Ctrl-C; the exit status.

    Raises AlreadyLocked if another machine serves the place, and RuntimeError if MLflow fails.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    folder = RunFolder.at(place)
    try:
        with leased(folder) as lease:
            return served(Database(folder, lease), folder, port)
    except AlreadyLocked as error:
        raise AlreadyLocked(
            f"another MLflow server serves {folder.location} ({error}): use its page, or stop it"
        ) from error
    except KeyboardInterrupt:
        return 0


def served(database: "Database", folder: RunFolder, port: int) -> int:
    """Run MLflow's own server on a database; returns its exit status."""
    end_all(leftovers(database))
    database.fetch()
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"),
            *("--port", str(port), "--workers", "1"),
            *("--backend-store-uri", f"sqlite:///{database.path}"),
            *("--artifacts-destination", artifacts(folder)),
        ],
        # MLflow's own jobs judge the answers of language models: a dozen processes for nothing here
        env={
            **os.environ,
            **endpoint(folder.place),
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            SERVED: str(database.path),
        },
    )
    try:
        with beside(database.keep_copied, "copies"):
            wait_until_ready(server, port)
            log.info("%s at http://127.0.0.1:%d, its data in %s", READY, port, folder.location)
            return server.wait()
    finally:
        end_all(leftovers(database))
        database.copy()


class Database:
    """The server's SQLite file, and its copy in a store."""

    def __init__(self, folder: RunFolder, lease: Lease) -> None:
        """The database of a folder, or of a prefix whose copy on this machine is the folder."""
        self._folder, self._lease = folder, lease
        self.path = folder.path / DATABASE
        # the hash of the copy that this file was, or has become
        self._mark = folder.path / MARK

    def fetch(self) -> None:
        """Take the copy of the store, unless the file here has gone on from it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = self._folder.read(DATABASE) if self._folder.uri else None
        if content is None or (self.path.exists() and self._copied() == digest(content)):
            return
        for old in self.path.parent.glob(f"{DATABASE}*"):
            old.unlink()
        write_bytes(self.path, content)
        write_bytes(self._mark, digest(content).encode())

    def copy(self) -> None:
        """Put a copy into the store, if the database has changed; LeaseLost if it is another's."""
        if not self._folder.uri or not self.path.exists():
            return
        snapshot = self.path.with_suffix(".copy")
        with (
            contextlib.closing(sqlite3.connect(self.path)) as source,
            contextlib.closing(sqlite3.connect(snapshot)) as target,
        ):
            source.backup(target)
        content = snapshot.read_bytes()
        snapshot.unlink()
        if digest(content) != self._copied():
            self._lease.check()
            self._folder.write(DATABASE, content)
            write_bytes(self._mark, digest(content).encode())

    def keep_copied(self, closing: threading.Event) -> None:
        """Copy it again and again; storage that fails is tried again at the next time."""
        pause = COPY_S
        while not closing.wait(pause):
            started = time.monotonic()
            try:
                self.copy()
            except (OSError, sqlite3.Error) as error:
                log.warning("the copy of MLflow's database failed, and is tried again: %s", error)
            except LeaseLost as error:
                log.error("%s", error)
                os.kill(os.getpid(), signal.SIGTERM)
                return
            pause = max(COPY_S, (time.monotonic() - started) / MAX_SHARE)

    def _copied(self) -> str:
        return self._mark.read_text() if self._mark.exists() else ""


def digest(content: bytes) -> str:
    """Hash of a copy."""
    return hashlib.sha256(content).hexdigest()


def artifacts(folder: RunFolder) -> str:
    """Where artifacts are, in the form that MLflow knows: without the options of pyarrow."""
    return store.join(folder.place.partition("?")[0], "artifacts")


def endpoint(place: str) -> dict[str, str]:
    """The environment in which MLflow finds an S3 store at the endpoint of a URI's options."""
    options = dict(urllib.parse.parse_qsl(place.partition("?")[2]))
    if host := options.get("endpoint_override"):
        scheme = options.get("scheme", "https")
        return {"MLFLOW_S3_ENDPOINT_URL": host if "://" in host else f"{scheme}://{host}"}
    return {}


def wait_until_ready(server: subprocess.Popen, port: int) -> None:
    """Wait until the server answers; RuntimeError if it has ended or is too late."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError(
                f"the MLflow server has ended with status {server.returncode}; its output is above"
            )
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            return
        except OSError:
            time.sleep(POLL_S)
    raise RuntimeError(f"the MLflow server does not answer after {START_S:.0f} s")


def leftovers(database: Database) -> list[psutil.Process]:
    """Processes of servers on this database that nobody waits for any more.

    Whoever kills this process, such as a cluster that ends, leaves them behind.
    """
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it has ended, or is somebody else's
            if process.environ().get(SERVED) == str(database.path):
                found.append(process)
    return found


def end_all(processes: Sequence[psutil.Process]) -> None:
    """End processes, and wait until they have ended."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    for process in psutil.wait_procs(processes, timeout=END_S)[1]:
        process.kill()
    psutil.wait_procs(processes, timeout=END_S)
