"""The server in a cloud's network that tells a machine when it will be taken away.

    AWS: a spot notice, two minutes before      GCP: a preemption, 30 s before

Each machine is told alone, at an address that means its own cloud; elsewhere nobody answers. To add
a cloud, write its class, and name it in CLOUDS.
"""

import json
import logging
import os
import time
import urllib.request
from dataclasses import dataclass
from datetime import datetime
from http.client import HTTPException
from typing import ClassVar, Self
from urllib.error import HTTPError

log = logging.getLogger(__name__)

ADDRESS = "169.254.169.254"
# seconds that an answer may take; where there is no such server, a connection may hang
TIMEOUT_S = 1.0
# what another server at this address, or none, may lead to; HTTPError is an OSError
FAILURES = (OSError, HTTPException, ValueError, LookupError, TypeError)
# no proxy: it would answer for its own machine
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True, kw_only=True)
class Notice:
    """What the cloud has said about this machine."""

    text: str
    """Its words."""
    deadline_s: float
    """When the machine goes, in seconds since 1970."""


class Aws:
    """IMDSv2 of EC2, whose answers need a token."""

    every_s = 5.0  # as AWS recommends
    TOKEN_TTL_S: ClassVar[int] = 21600

    def __init__(self, address: str) -> None:
        self._address = address.rstrip("/")
        self._renew()

    @classmethod
    def find(cls) -> Self | None:
        """The server; only EC2 gives tokens."""
        return cls(os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or f"http://{ADDRESS}")

    def notice(self) -> Notice | None:
        """The spot notice, if there is one; FAILURES if the answer is malformed, or an error."""
        headers = {"X-aws-ec2-metadata-token": self._token}
        try:
            url = f"{self._address}/latest/meta-data/spot/instance-action"
            found = json.loads(ask(url, headers)[0])
        except HTTPError as error:
            if error.code == 401:  # the token has expired: the next question has a new one
                self._renew()
            elif error.code != 404:
                raise
            return None
        text = f"AWS gives notice of {found['action']} at {found['time']}"
        return Notice(text=text, deadline_s=datetime.fromisoformat(found["time"]).timestamp())

    def _renew(self) -> None:
        headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(self.TOKEN_TTL_S)}
        self._token, _ = ask(f"{self._address}/latest/api/token", headers, method="PUT")


class Gcp:
    """The metadata server of Compute Engine, which names itself in a header."""

    every_s = 1.0  # of the 30 s that GCP leaves
    LEFT_S: ClassVar[float] = 30.0
    HEADERS: ClassVar[dict[str, str]] = {"Metadata-Flavor": "Google"}

    def __init__(self, address: str) -> None:
        self._address = address

    @classmethod
    def find(cls) -> Self | None:
        """The server, if its answer names Google."""
        server = cls(os.environ.get("GCE_METADATA_HOST") or ADDRESS)
        _, headers = ask(f"http://{server._address}/computeMetadata/v1/instance/id", cls.HEADERS)
        return server if headers.get("Metadata-Flavor") == "Google" else None

    def notice(self) -> Notice | None:
        """The preemption, if it has begun; FAILURES if the answer is malformed, or an error."""
        url = f"http://{self._address}/computeMetadata/v1/instance/preempted"
        answer, _ = ask(url, self.HEADERS)
        if answer not in ("TRUE", "FALSE"):
            raise ValueError(f"preempted is {answer!r}, neither TRUE nor FALSE")
        if answer == "FALSE":
            return None
        text = f"GCP preempts it and leaves {self.LEFT_S:.0f} s"
        return Notice(text=text, deadline_s=time.time() + self.LEFT_S)


CLOUDS = (Gcp, Aws)
MetadataServer = Gcp | Aws


def find_server() -> MetadataServer | None:
    """The metadata server of this machine; None outside of the clouds."""
    for cloud in CLOUDS:
        try:
            if server := cloud.find():
                return server
        except FAILURES as error:
            log.debug("no metadata server of %s: %s", cloud.__name__, error)
    return None


def ask(url: str, headers: dict[str, str], method: str = "GET") -> tuple[str, dict[str, str]]:
    """The text and the headers of an answer; HTTPError for a status of an error."""
    request = urllib.request.Request(url, headers=headers, method=method)
    with OPENER.open(request, timeout=TIMEOUT_S) as answer:
        return answer.read().decode().strip(), dict(answer.headers)
