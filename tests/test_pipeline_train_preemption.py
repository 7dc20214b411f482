"""What a node's watcher makes of the metadata servers of the clouds, and of Ray's drains."""

import logging
import socket
import threading
import time

import pytest
from fake_metadata import NOBODY, FakeMetadata
from waiting import wait_for

from pipeline.train import metadata_server, preemption
from pipeline.train.metadata_server import Aws, Gcp, find_server
from pipeline.train.preemption import Watch
from support.threads import beside

CLOUDS = ("aws", "gcp")


@pytest.fixture
def served(monkeypatch):
    """Start the metadata server of a cloud, and make this process believe that it is there."""
    servers = []

    def serve(cloud: str) -> FakeMetadata:
        servers.append(FakeMetadata(cloud).__enter__())
        for name, value in servers[-1].environment.items():
            monkeypatch.setenv(name, value)
        return servers[-1]

    yield serve
    for server in servers:
        server.__exit__()


@pytest.fixture
def drains(monkeypatch):
    """The ids of the nodes that Ray drains, which tests set."""
    found = set()
    monkeypatch.setattr(preemption, "draining", lambda: found)
    monkeypatch.setattr(preemption, "DRAINS_EVERY_S", 0.05)
    monkeypatch.setattr(Aws, "every_s", 0.05)
    monkeypatch.setattr(Gcp, "every_s", 0.05)
    return found


@pytest.mark.parametrize(("cloud", "kind"), [("aws", Aws), ("gcp", Gcp)])
def test_each_cloud_is_known_by_its_own_server(served, cloud, kind):
    served(cloud)
    server = find_server()
    assert isinstance(server, kind)
    assert server.notice() is None


def test_aws_says_what_happens_and_when(served):
    fake = served("aws")
    fake.announce(120)
    notice = find_server().notice()
    assert "AWS gives notice of terminate" in notice.text
    assert 115 < notice.deadline_s - time.time() <= 120


def test_gcp_leaves_thirty_seconds(served):
    fake = served("gcp")
    fake.announce()
    notice = find_server().notice()
    assert "GCP preempts it" in notice.text
    assert 29 < notice.deadline_s - time.time() <= 30


def test_the_token_of_aws_is_renewed_when_it_has_expired(served):
    fake = served("aws")
    server = find_server()
    fake.expire()
    fake.announce()
    assert server.notice() is None  # asked with the old token
    assert server.notice()
    assert fake.asked["/latest/api/token"] == 2


@pytest.mark.parametrize("cloud", CLOUDS)
def test_bad_answers_are_ignored_and_asked_again(served, drains, caplog, cloud):
    caplog.set_level(logging.DEBUG, "pipeline")
    fake, said = served(cloud), []
    fake.faults = [(503, ""), (200, "[]"), (200, '{"action": "stop", "time": "soon"}'), (200, "")]
    fake.announce()
    watch = Watch("n1", said.append)
    with beside(watch.run, "watch"):
        wait_for(watch.leaves)
    assert not fake.faults
    assert sum("asked again" in line for line in caplog.messages) == 4
    assert {record.levelname for record in caplog.records} == {"DEBUG"}
    assert len(said) == 1


def test_a_proxy_is_not_asked_for_the_machine_behind_it(served, monkeypatch):
    fake = served("gcp")
    monkeypatch.setenv("http_proxy", f"http://{NOBODY}")
    fake.announce()
    assert find_server().notice()


def test_where_no_server_answers_nothing_happens(drains, monkeypatch):
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://{NOBODY}")
    monkeypatch.setenv("GCE_METADATA_HOST", NOBODY)
    looks, found = [], find_server
    monkeypatch.setattr(preemption, "find_server", lambda: looks.append(1) or found())
    watch = Watch("n1", pytest.fail)
    with beside(watch.run, "watch"):
        time.sleep(1.0)
    assert not watch.leaves()
    assert len(looks) == preemption.PROBES


def test_a_server_that_never_answers_holds_nobody_up(drains, monkeypatch):
    monkeypatch.setattr(metadata_server, "TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://{address}")
        monkeypatch.setenv("GCE_METADATA_HOST", address)
        watch, closing = Watch("n1", pytest.fail), threading.Event()
        thread = threading.Thread(target=watch.run, args=(closing,))
        started = time.monotonic()
        thread.start()
        assert time.monotonic() - started < 0.2  # training goes on beside it
        closing.set()
        thread.join(5)
        assert not thread.is_alive()
        assert not watch.leaves()


def test_a_drain_of_this_node_alone_makes_it_leave(drains, monkeypatch):
    monkeypatch.setattr(preemption, "find_server", lambda: None)
    said, watch = [], None
    watch = Watch("n1", said.append)
    with beside(watch.run, "watch"):
        drains.add("n2")
        time.sleep(0.3)
        assert not watch.leaves()
        drains.add("n1")
        wait_for(watch.leaves)
    assert watch.notice is None  # somebody has drained it already
    assert "goes away (Ray drains it): a checkpoint is written" in said[0]
