"""Who shares a feed, and batches on their device."""

import pytest

from pipeline.train.batches import ranks_of


def test_the_workers_of_a_node_are_neighbours():
    nodes = ["a", "a", "b", "c", "c", "c"]
    assert [ranks_of(node, nodes) for node in "abc"] == [range(2), range(2, 3), range(3, 6)]
    with pytest.raises(RuntimeError, match=r"\[0, 2\]"):
        ranks_of("a", ["a", "b", "a"])
