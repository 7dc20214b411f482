"""A real MLflow server in a process of its own, and a door in front of it that can misbehave."""

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class MlflowServer:
    """`mlflow server` on a folder; it may be killed and started again on the same port."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.process: subprocess.Popen | None = None

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def store(self) -> str:
        """What lies behind it, to look at without it."""
        return f"sqlite:///{self.folder}/server.db"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--workers", "1", "--backend-store-uri", self.store]
        command += ["--artifacts-destination", str(self.folder / "artifacts"), "--serve-artifacts"]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, env=clean_environment()
            )
        deadline = time.monotonic() + 120
        while not self.answers():
            assert self.process.poll() is None, (self.folder / "server.log").read_text()
            assert time.monotonic() < deadline, (self.folder / "server.log").read_text()
            time.sleep(0.2)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return answer.status == 200
        except OSError:
            return False

    def kill(self) -> None:
        """Kill it and its children at once, in the middle of whatever they do."""
        server = psutil.Process(self.process.pid)
        family = [server, *server.children(recursive=True)]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, timeout=20)
        self.process.wait()


def clean_environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    return kept | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # seven processes less


class Door:
    """Passes requests on to a server, or answers them as a broken server would.

    arrived: name and step of each point that the server took, in the order in which they came.

    mode: "open"; "500"; "full" (507); "slow" (each answer late); "deaf" (the request is carried out
    and the answer lost); "hang" (no answer as long as it lasts); "token" (401 unless the right one
    is given).
    """

    def __init__(self, port: int, token: str = "") -> None:
        self.mode, self.requests, self.late_s = "open", 0, 0.3
        self.arrived: list[tuple[str, int]] = []
        door = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                door.requests += 1
                if door.mode in ("500", "full"):
                    return self.answer(500 if door.mode == "500" else 507, b"no")
                if door.mode == "token" and self.headers["Authorization"] != f"Bearer {token}":
                    return self.answer(401, b"who are you?")
                if door.mode == "hang":
                    while door.mode == "hang":
                        time.sleep(0.05)
                    return self.connection.shutdown(socket.SHUT_RDWR)
                if door.mode == "slow":
                    time.sleep(door.late_s)
                backend = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                backend.request(self.command, self.path, body, dict(self.headers))
                answer = backend.getresponse()
                content = answer.read()
                backend.close()
                if self.path.endswith("/runs/log-batch") and answer.status == 200:
                    points = json.loads(body).get("metrics", ())
                    door.arrived += [(point["key"], int(point.get("step", 0))) for point in points]
                if door.mode == "deaf":
                    return self.connection.shutdown(socket.SHUT_RDWR)
                return self.answer(answer.status, content, answer.headers["Content-Type"])

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_one

            def answer(self, status: int, content: bytes, kind: str | None = None) -> None:
                self.send_response(status)
                self.send_header("Content-Type", kind or "text/plain")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                """Keep quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
