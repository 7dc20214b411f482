"""All workers know whether all have succeeded, before one of them relies on it.

agreement = Agreement()              once, on all workers
agreement.results(action)            on all workers, in their background threads
"""

from collections.abc import Callable

import torch.distributed


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
            self._exchange((f"{type(error).__name__}: {error}", None))
            raise
        answers = self._exchange(("", result))
        if failures := [f"rank {rank}: {text}" for rank, (text, _) in enumerate(answers) if text]:
            raise OSError("; ".join(failures))
        return [result for _, result in answers]

    def _exchange(self, answer: tuple[str, object]) -> list[tuple[str, object]]:
        """The answers of all workers."""
        answers = [answer] * torch.distributed.get_world_size(self._group)
        torch.distributed.all_gather_object(answers, answer, group=self._group)
        return answers
