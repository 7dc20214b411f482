"""Ray Data in front of a worker: the sequence, whatever the number of workers and of tasks."""

import shutil
import time
from dataclasses import replace

import numpy as np
import pytest

from pipeline.data import stream
from pipeline.data.dataset import Dataset
from pipeline.data.order import RankShare, ReadSpans
from pipeline.data.reader import SampleReader, View
from pipeline.data.stream import Stream, ahead, rebatch
from vit.config import ImageConfig

VIEW = View(images=ImageConfig(), size=16, seed=3)
BATCH = 50


def stream_of(dataset: Dataset, rank: int, workers: int, task_samples: int = 64) -> Stream:
    return Stream(
        reader=SampleReader(dataset=dataset, view=VIEW),
        order=dataset.order(11),
        share=RankShare.of(rank, workers, BATCH),
        task_samples=task_samples,
        buffer_gib=0.1,
    )


@pytest.mark.ray
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_together_read_the_global_batches(ray_cluster, digits, workers):
    dataset = Dataset.open([str(digits)], "train", slice_samples=7)
    spans = dataset.order(11).spans(27 * BATCH, 31 * BATCH)  # across an epoch's end
    expected = SampleReader(dataset=dataset, view=VIEW)(spans)
    parts = []
    for rank in range(workers):
        mine = stream_of(dataset, rank, workers)
        size = mine.share.size
        parts.append(list(rebatch(mine.blocks(27 * size, 31 * size), size)))
    for step, shares in enumerate(zip(*parts, strict=True)):
        for name in ("position", "labels", "images", "key"):
            batch = np.concatenate([share[name] for share in shares])
            assert np.array_equal(batch, expected[name][step * BATCH : (step + 1) * BATCH])


@pytest.mark.ray
def test_segments_join_without_a_seam(ray_cluster, digits, monkeypatch):
    monkeypatch.setattr(stream, "SEGMENT_TASKS", 3)
    monkeypatch.setattr(stream, "SEGMENT_OVERLAP", 1)
    dataset = Dataset.open([str(digits)], "train", slice_samples=7)
    blocks = list(stream_of(dataset, 0, 1, task_samples=10).blocks(5, 100))
    assert [len(block["position"]) for block in blocks] == [10] * 9 + [5]
    assert np.concatenate([b["position"] for b in blocks]).tolist() == list(range(5, 100))


@pytest.mark.ray
def test_a_failing_read_surfaces_where_the_batch_is_taken(ray_cluster, digits, tmp_path):
    folder = shutil.copytree(digits, tmp_path / "shards")
    dataset = Dataset.open([str(folder)], "train", slice_samples=7)
    for tar in folder.glob("train-*.tar"):
        tar.unlink()
    with pytest.raises(OSError, match=r"train-\d+\.tar"):
        list(stream_of(dataset, 0, 1).blocks(0, 10))


@pytest.mark.ray
def test_tasks_run_ahead_while_a_step_takes_its_time(ray_cluster, digits, tmp_path):
    def read(spans: ReadSpans) -> dict[str, np.ndarray]:
        (tmp_path / str(spans.position[0])).touch()
        return {"position": spans.position}

    dataset = Dataset.open([str(digits)], "train", slice_samples=7)
    blocks = replace(stream_of(dataset, 0, 1, task_samples=10), reader=read).blocks(0, 200)
    next(blocks)  # and now the model computes; the buffer has room for all that is to come
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 20 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(list(tmp_path.iterdir())) == 20


def block(first: int, last: int, labels: int = 1) -> dict[str, np.ndarray]:
    rows = np.arange(first, last)
    return {"position": rows, "labels": np.tile(rows[:, None], labels), "images": rows * 2}


def test_rebatch_keeps_rows_and_their_order():
    batches = list(rebatch(iter([block(0, 3), block(3, 4), block(4, 11)]), 4))
    assert [batch["position"].tolist() for batch in batches] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 10],
    ]
    assert all((batch["images"] == 2 * batch["position"]).all() for batch in batches)


def test_rebatch_pads_labels_to_the_widest_block():
    (batch,) = rebatch(iter([block(0, 1, labels=1), block(1, 2, labels=3)]), 2)
    assert batch["labels"].tolist() == [[0, -1, -1], [1, 1, 1]]


def test_ahead_keeps_order_and_raises_in_place():
    def items():
        yield from range(3)
        raise OSError("disk")

    found = []
    with pytest.raises(OSError, match="disk"):
        for item in ahead(items(), 2):
            found.append(item)
    assert found == [0, 1, 2]
    assert list(ahead(iter(range(10)), 4)) == list(range(10))
