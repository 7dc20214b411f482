"""Blocks of Ray Data in order, and what is made of them."""

import threading

import numpy as np
import pytest

from pipeline.data.stream import ahead, batches


def block(first: int, last: int, step: int = 1) -> dict[str, np.ndarray]:
    rows = np.arange(first, last, step)
    return {"position": rows, "labels": rows[:, None], "images": rows * 2}


def test_batches_are_the_rows_of_their_ranges_without_a_copy():
    blocks = [block(0, 3), block(3, 4), block(4, 11), block(20, 24)]
    found = list(batches(iter(blocks), [(1, 5), (5, 6), (7, 7), (9, 11), (21, 24)]))
    rows = [[int(row) for piece in pieces for row in piece["position"]] for pieces in found]
    assert rows == [[1, 2, 3, 4], [5], [], [9, 10], [21, 22, 23]]
    for pieces in found:
        for piece in pieces:
            assert (piece["images"] == 2 * piece["position"]).all()
            assert any(np.shares_memory(piece["images"], each["images"]) for each in blocks)


@pytest.mark.parametrize("ranges", [[(2, 8)], [(8, 9)]])
def test_positions_that_a_stream_lacks_are_an_error(ranges):
    with pytest.raises(RuntimeError, match="position [48]"):
        list(batches(iter([block(0, 4), block(6, 8)]), ranges))


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


def test_ahead_starts_before_it_is_asked():
    started = threading.Event()

    def items():
        started.set()
        yield 1

    taken = ahead(items(), 1)
    assert started.wait(10)
    assert list(taken) == [1]
