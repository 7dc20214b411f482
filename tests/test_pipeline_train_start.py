"""All workers of an attempt start from the checkpoint that rank 0 names, or none starts."""

import os
import re
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch.distributed as dist
import torch.multiprocessing as mp
from checkpoints import write

from pipeline.checkpoint.checkpoints import Checkpoints
from pipeline.train.start import agreed_checkpoint

WORKERS = 3


def worker(rank: int, port: int, root: Path, answers) -> None:
    """Rank 0 and 1 are on one node, rank 2 is on another; each case gives one answer."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=WORKERS)
    for case in sorted(root.iterdir()):
        node = "one" if rank < 2 else "two"
        uri = (case / "store").as_uri() if (case / "store").exists() else None
        job = SimpleNamespace(checkpoints=Checkpoints(folder=case / node, uri=uri))
        try:
            found = agreed_checkpoint(job, rank, 0 if rank == 2 else rank)
            answer = found and (found.step, found.samples, found.path.parent.name)
        except RuntimeError as error:
            answer = str(error)
        answers.put((case.name, rank, answer))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What each rank gets in each case, by the name of the case."""
    root = tmp_path_factory.mktemp("start")
    store = (root / "in-store/store").as_uri()
    write(root / "in-store/one", 10, store)
    write(root / "in-store/one", 20, store)
    write(root / "in-store/two", 30)  # of an attempt that died before its upload
    write(root / "in-store/two", 20, samples=1)  # of another history
    (root / "none/one").mkdir(parents=True)
    # folders that are not shared, although somebody said so
    write(root / "other-steps/one", 30)
    write(root / "other-steps/two", 10)
    write(root / "other-content/one", 30)
    write(root / "other-content/two", 30, samples=1)
    damaged = (root / "damaged/store").as_uri()
    write(root / "damaged/one", 10, damaged)
    state = root / "damaged/store/step-000000010/state.pt"
    state.write_bytes(b"x" + state.read_bytes()[1:])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    queue = mp.get_context("spawn").SimpleQueue()
    mp.spawn(worker, (port, root, queue), nprocs=WORKERS)
    found: dict[str, dict[int, object]] = {}
    for _ in range(WORKERS * len(list(root.iterdir()))):
        case, rank, answer = queue.get()
        found.setdefault(case, {})[rank] = answer
    return found


def test_each_node_has_the_checkpoint_of_the_store_whatever_it_had_before(answers):
    assert answers["in-store"] == {
        0: (20, 2560, "one"),
        1: (20, 2560, "one"),
        2: (20, 2560, "two"),
    }


def test_a_run_without_a_checkpoint_starts_anew_on_all(answers):
    assert answers["none"] == {0: None, 1: None, 2: None}


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("other-steps", "rank 2 on node .*step-000000030 is not a checkpoint"),
        ("other-content", "rank 2 on node .*has digest .*, rank 0 starts from"),
        ("damaged", r"rank 2 on node .*state\.pt is damaged"),
    ],
)
def test_what_one_rank_cannot_load_fails_on_all(answers, case, words):
    assert len(set(answers[case].values())) == 1
    assert re.search(words, answers[case][0])
