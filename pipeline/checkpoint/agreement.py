"""All workers know whether all have succeeded, before one of them relies on it.

agreement = Agreement()              once, on all workers
with agreement.together(): ...       on all workers, in their background threads
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed


class Agreement:
    """A meeting point of all workers that does not touch the collectives of training."""

    def __init__(self) -> None:
        """Create a process group on the CPU; all workers must do so, in the main thread."""
        self._group = torch.distributed.new_group(backend="gloo")

    @contextmanager
    def together(self) -> Iterator[None]:
        """Leave the block once all workers have reached its end.

        If it fails on any worker, all raise: that one its own error, the others OSError with the
        rank and the message. Blocks must follow each other in the same order on all workers.
        """
        try:
            yield
        except BaseException as error:
            self._failures(f"{type(error).__name__}: {error}")
            raise
        if failures := self._failures(None):
            raise OSError("; ".join(failures))

    def _failures(self, message: str | None) -> list[str]:
        """Exchange the workers' messages; those of the workers that failed."""
        messages = [None] * torch.distributed.get_world_size(self._group)
        torch.distributed.all_gather_object(messages, message, group=self._group)
        return [f"rank {rank}: {text}" for rank, text in enumerate(messages) if text]
