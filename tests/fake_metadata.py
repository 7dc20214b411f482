"""A server on this machine that answers like the metadata server of AWS or GCP.

with FakeMetadata("aws") as server:
    server.environment           # for a process that is to believe that it is there
    server.announce()            # its machine goes away
"""

import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

# a port of this machine where nobody answers
NOBODY = "127.0.0.1:9"


class FakeMetadata:
    """The server of one machine, with IMDSv2's tokens, or with Google's header."""

    def __init__(self, cloud: str, address: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        """Answer like `cloud` (aws or gcp) at an address; port 0 takes a free one."""
        self.cloud = cloud
        self.asked: Counter[str] = Counter()
        """How often each path was asked for, with the right token or header."""
        self.faults: list[tuple[int, str]] = []
        """Answers about the machine, status and text, that are given first."""
        self._token = 0
        self._notice: dict | None = None
        self._server = ThreadingHTTPServer(address, self._handler())

    @property
    def environment(self) -> dict[str, str]:
        """The variables that name this server, and nobody as that of the other cloud."""
        here = f"127.0.0.1:{self._server.server_address[1]}"
        aws, gcp = (here, NOBODY) if self.cloud == "aws" else (NOBODY, here)
        return {"AWS_EC2_METADATA_SERVICE_ENDPOINT": f"http://{aws}/", "GCE_METADATA_HOST": gcp}

    def announce(self, left_s: float = 120.0) -> None:
        """Say from now on that the machine goes away."""
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + left_s))
        self._notice = {"action": "terminate", "time": at}

    def expire(self) -> None:
        """Let the token that was given last expire."""
        self._token += 1

    def __enter__(self) -> Self:
        """Start to answer."""
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self._server.shutdown()
        self._server.server_close()

    def _aws(self, method: str, path: str, headers: dict) -> tuple[int, str]:
        if (method, path) == ("PUT", "/latest/api/token"):
            seconds = int(headers.get("X-aws-ec2-metadata-token-ttl-seconds", 0))
            self.asked[path] += 1
            self._token += 1
            return (200, f"token-{self._token}") if 1 <= seconds <= 21600 else (400, "")
        if headers.get("X-aws-ec2-metadata-token") != f"token-{self._token}":
            return 401, "Unauthorized"
        self.asked[path] += 1
        if path != "/latest/meta-data/spot/instance-action":
            return 404, ""
        if self.faults:
            return self.faults.pop(0)
        return (200, json.dumps(self._notice)) if self._notice else (404, "Not Found")

    def _gcp(self, method: str, path: str, headers: dict) -> tuple[int, str]:
        if method != "GET" or headers.get("Metadata-Flavor") != "Google":
            return 403, "Missing Metadata-Flavor:Google header."
        self.asked[path] += 1
        if path == "/computeMetadata/v1/instance/id":
            return 200, "4711"
        if path != "/computeMetadata/v1/instance/preempted":
            return 404, ""
        if self.faults:
            return self.faults.pop(0)
        return 200, "TRUE" if self._notice else "FALSE"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                reply = fake._aws if fake.cloud == "aws" else fake._gcp
                status, text = reply(self.command, self.path, self.headers)
                self.send_response(status)
                if fake.cloud == "gcp":
                    self.send_header("Metadata-Flavor", "Google")
                self.end_headers()
                self.wfile.write(text.encode())

            do_GET = do_PUT = answer  # noqa: N815 (names of http.server)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        return Handler
