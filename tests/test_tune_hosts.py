"""A search on two hosts without a common disk ends like one on a single host."""

import json
import re

import pytest
from hosts import BUCKET, WORK
from test_two_hosts import SETTINGS, two_hosts

pytestmark = [pytest.mark.ray, pytest.mark.slow]

TIMEOUT_S = 900
EPOCHS = 2  # each trial takes much longer to start than to train
RUNS, NAME = f"s3://{BUCKET}/runs", "search"
OWN = ("workers", "worker-cpus", "eval-every", "crops", "record.models", "max-restarts")
SEARCH = "python -m tune search demo --rungs 3/4 --seeds 2 --set optim.warmup=0.1".split()


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    """Two hosts of one Ray, and the digits in their store."""
    with two_hosts(tmp_path_factory.mktemp("hosts")) as hosts:
        yield hosts


def search(runs: str) -> list[str]:
    """The command of a small search in a folder or store."""
    settings = {name: value for name, value in SETTINGS.items() if name not in OWN}
    settings["epochs"] = EPOCHS
    flat = [
        word for key, value in settings.items() for word in (f"--base.{key}", *str(value).split())
    ]
    return [*SEARCH, "--name", NAME, "--base.runs-dir", runs, *flat]


def values(output: str) -> dict[str, str]:
    """The loss of each trial as the console shows it."""
    return dict(re.findall(r"^(rung-\d-\d\d) +done +val/loss (\S+)", output, re.MULTILINE))


def test_a_search_in_a_store_ends_on_two_hosts_like_on_one(hosts):
    both = hosts.h1.done(*search(RUNS), timeout=TIMEOUT_S)
    own = ("env", "-u", "RAY_ADDRESS", *search(f"{WORK}/runs"))
    alone = hosts.h1.done(*own, timeout=TIMEOUT_S)
    assert len(values(both)) == 3 + 4
    assert values(both) == values(alone)
    keys = set(hosts.store.keys(f"runs/{NAME}/"))
    names = ("search.json", "study.log", "best.json", "report.html")
    assert {f"runs/{NAME}/{name}" for name in names} <= keys
    assert {f"runs/{NAME}/trials/{trial}/result.json" for trial in values(both)} <= keys
    # what the answer is, from the store alone
    hosts.h1.replace()
    hosts.h1.done("python", "-m", "tune", "report", f"{RUNS}/{NAME}")
    found = json.loads(hosts.store.read(f"runs/{NAME}/best.json"))["found"]
    assert found["search"] == NAME
