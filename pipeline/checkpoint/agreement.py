"""All workers know whether all have succeeded, before one of them relies on it.

agreement = Agreement()              once, on all workers
agreement.results(action)            on all workers, in their background threads
"""

from collections.abc import Callable

import torch.distributed
from torch.distributed import ProcessGroup


class Agreement:
    """A meeting point of all workers that does not touch the collectives of training."""

    def __init__(self) -> None:
        """Create a process group on the CPU; all workers must do so, in the main thread."""
        self._group = torch.distributed.new_group(backend="gloo")

    def results(self, action: Callable[[], object] | None) -> list[object]:
        """Run an action on each worker that gives one; what it returned on each, by rank.

        If it fails on any worker, all raise: that one its own error, the others OSError with the
        rank and the message. Calls must follow each other in the same order on all workers.
        """
        try:
            result = action() if action else None
        except BaseException as error:
            gathered((f"{type(error).__name__}: {error}", None), self._group)
            raise
        answers = gathered(("", result), self._group)
        if failures := [f"rank {rank}: {text}" for rank, (text, _) in enumerate(answers) if text]:
            raise OSError("; ".join(failures))
        return [result for _, result in answers]


def gathered(item: object, group: ProcessGroup | None = None) -> list:
    """The item of every worker, by rank; all workers of the group call it, by default all."""
    items = [None] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(items, item, group=group)
    return items
