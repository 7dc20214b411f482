"""Rows of all workers in the host memory of rank 0, which are sent in rounds of bounded size.

    worker: its rows, on the host -> a piece of them on the device -> rank 0: all rows, in place

Rank 0 has the whole once, the other workers have their share, and a device what one round moves.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed
from torch import Tensor

# what all workers together send in one round
ROUND_BYTES = 64 << 20


class Gathered:
    """The rows of this worker; on rank 0, at last those of all."""

    def __init__(
        self, places: Sequence[np.ndarray], rank: int, *, width: int, dtype: torch.dtype
    ) -> None:
        """Make room for rows of a width; `places` are the positions (m,) of each worker's rows."""
        self._places, self._rank = [torch.from_numpy(place) for place in places], rank
        # where the rows of this worker go, in the order in which they come
        self._own = self._places[0] if rank == 0 else torch.arange(len(places[rank]))
        rows = sum(map(len, places)) if rank == 0 else len(places[rank])
        self._memory = torch.empty(rows, width, dtype=dtype)
        self._count = 0

    def add(self, rows: Tensor) -> None:
        """Take the next rows (b, width) of this worker, on the host."""
        self._memory[self._own[self._count : self._count + len(rows)]] = rows
        self._count += len(rows)

    def whole(self, device: torch.device) -> Tensor | None:
        """All rows by position on rank 0, None on the others; every worker calls it.

        They travel by way of `device`, on which the process group communicates.
        """
        if self._count != len(self._own):
            raise RuntimeError(f"worker {self._rank} has {self._count} of {len(self._own)} rows")
        most = max(map(len, self._places[1:]), default=0)
        row_bytes = max(1, self._memory.shape[1] * self._memory.element_size())
        step = max(1, ROUND_BYTES // (len(self._places) * row_bytes))
        for first in range(0, most, step):
            self._round(first, min(step, most - first), device)
        return self._memory if self._rank == 0 else None

    def _round(self, first: int, count: int, device: torch.device) -> None:
        """Send the rows [first, first + count) of each worker's share, as far as it has them."""
        piece = self._memory.new_zeros(count, self._memory.shape[1], device=device)
        if self._rank:
            own = self._memory[first : first + count]
            piece[: len(own)] = own.to(device)
            torch.distributed.gather(piece)
            return
        pieces = [torch.empty_like(piece) for _ in self._places]
        torch.distributed.gather(piece, pieces)
        for place, rows in zip(self._places[1:], pieces[1:], strict=True):
            part = place[first : first + count]
            self._memory[part] = rows[: len(part)].cpu()
