"""Batches of items, and threads that work on them ahead of the one that is waited for."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

T, R = TypeVar("T"), TypeVar("R")

# items of each thread that are begun ahead of the one that is waited for
AHEAD = 2


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items in lists of `size`, of which the last may be shorter."""
    remaining = iter(items)
    return iter(lambda: list(islice(remaining, size)), [])


def ordered(function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[tuple[T, R]]:
    """Each item with what the function gives for it, in their order, computed by threads.

    Items are taken as they are needed, so that there may be any number of them. After an error
    nothing new is begun; what threads are at work on goes on without being waited for.
    """
    pool = ThreadPoolExecutor(threads)
    pending: deque = deque()
    try:
        for item in items:
            pending.append((item, pool.submit(function, item)))
            if len(pending) > AHEAD * threads:
                first, result = pending.popleft()
                yield first, result.result()
        for first, result in pending:
            yield first, result.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
