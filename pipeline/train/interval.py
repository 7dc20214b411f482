"""Loss and gradient norm of the steps since the last record: their means and extremes.

    Outcomes reads a step -> Interval -> values() of the next record; a checkpoint keeps the rest

It is a part of the training state: a run that goes on from a checkpoint in the middle of an
interval records the same numbers as one that was never interrupted.
"""

import math
from dataclasses import dataclass, field


@dataclass(kw_only=True)
class Interval:
    """The steps with an update that no record has told of yet."""

    losses: list[float] = field(default_factory=list)
    """Loss of the global batch, by step."""
    norms: list[float] = field(default_factory=list)
    """Norm of the gradients before clipping, by step."""

    def add(self, loss: float, norm: float) -> None:
        """Add a step."""
        self.losses.append(loss)
        self.norms.append(norm)

    def values(self) -> dict[str, float]:
        """Means and extremes for a record; there must have been a step."""
        return {
            "train/loss": math.fsum(self.losses) / len(self.losses),
            "train/loss_min": min(self.losses),
            "train/loss_max": max(self.losses),
            "grad_norm": math.fsum(self.norms) / len(self.norms),
            "grad_norm_max": max(self.norms),
        }
