"""Multinomial logistic regression on features, with a search for the strength of its L2 penalty.

    Rows (features, labels, held out) -> search -> a Fit for each strength -> the Fit to all rows

The objective is that of scikit-learn's LogisticRegression with C = 1 / strength: the sum of the
cross-entropies of all images, and strength / 2 times the sum of the squared weights; biases are
free. The protocol is that of CLIP (arXiv 2103.00020, appendix A.3): L-BFGS with at most 1,000
iterations; 96 steps of the strength from 1e-6 to 1e6, of which a search tries seven and then halves
the interval around the best down to eight steps a decade; images that are held out of the fit
select, and the selected strength is fitted to all. Here each fit starts from that of the nearest
strength: the problem is convex, so this saves iterations and changes no solution.

One pass over n images costs 4 n D K operations. No more logits exist at once than those of a chunk.

Shapes: n images, m of a chunk, D width of the features, K classes, M labels per image (padded with
-1). A head is (K, D + 1): the weights, and the bias as the last column.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vit.loss import make_targets, normalised

ITERATIONS, HISTORY = 1000, 10
# a fit ends at this largest component of the gradient (see `Fit`); scikit-learn's default is 1e-4
TOLERANCE = 1e-6
# strengths are 10 ** (place / 8): the first places to try, the farthest, and their distance
PER_DECADE, FARTHEST, FIRST_STEP = 8, 48, 16
# logits of a chunk
CHUNK = 1 << 24


@dataclass(frozen=True, kw_only=True)
class Fit:
    """A fitted head."""

    strength: float
    top1: float | None = None
    """Top-1 on the images that were held out; None if the head was fitted to all."""
    loss: float | None = None
    """Cross-entropy on them."""
    iterations: int
    gradient: float
    """Largest component of the gradient at the end, per image, for features of variance 1."""
    head: np.ndarray | None = None
    """(K, D + 1) float32; None for a fit that only takes part in the search."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Features and labels of all images, in pieces."""

    pieces: Sequence[tuple[Tensor, Tensor, Tensor]]
    """Features (m, D) float32, labels (m, M) int64 and whether each is held out (m,) bool; on the
    device, or on the host if they have no room there."""
    mean: Tensor
    """Mean of each feature over all images: (D,) float64, on the device."""
    variance: Tensor
    """Variance of each feature: (D,) float64, on the device."""
    classes: int
    device: torch.device

    @classmethod
    def of(
        cls,
        units: Iterable[Mapping[str, np.ndarray]],
        held_out: np.ndarray,
        classes: int,
        device: torch.device,
    ) -> "Rows":
        """The units of a store; `held_out` (n,) says it of each image, by position.

        Images may be left out of the units.
        """
        pieces, moments, count = [], np.zeros((2, 1)), 0
        for unit in units:
            x = unit["features"]
            count += len(x)
            moments = moments + [x.sum(0, dtype=np.float64), (x**2).sum(0, dtype=np.float64)]
            columns = (unit["features"], unit["labels"], held_out[unit["position"]])
            piece = tuple(map(torch.from_numpy, columns))
            if device.type == "cuda" and has_room(piece[0], classes, device):
                piece = tuple(column.to(device) for column in piece)
            pieces.append(piece)
        mean, square = torch.from_numpy(moments / count).to(device)
        variance = (square - mean**2).clamp_min(0)
        return cls(pieces=pieces, mean=mean, variance=variance, classes=classes, device=device)

    def chunks(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """The columns of a piece for some images at a time, on the device; features float64.

        The loss must be smooth to more digits than float32 has: near the solution a line search
        sees only noise there, above all in a fit that starts from a neighbour.
        """
        most = max(1, CHUNK // self.classes)
        for piece in self.pieces:
            for chunk in zip(*(column.split(most) for column in piece), strict=True):
                x, labels, held = (column.to(self.device) for column in chunk)
                yield x.double(), labels, held

    def count(self, *, whole: bool) -> int:
        """Images that are fitted: all of them, or those that are not held out."""
        return sum(len(held) if whole else int((~held).sum()) for _, _, held in self.pieces)

    def loss(self, head: Tensor, *, whole: bool) -> tuple[Tensor, Tensor]:
        """Sum of the cross-entropies of the fitted images, and its gradient (K, D + 1).

        The target of an image of several classes is shared evenly between them.
        """
        total = head.new_zeros(())
        gradient = torch.zeros_like(head)
        for x, labels, held in self.chunks():
            counts = torch.ones_like(held) if whole else ~held
            targets = normalised(make_targets(labels, self.classes).double())
            log_p = F.log_softmax(logits(x, head), dim=1)
            total -= (targets * log_p).sum(1).mul(counts).sum()
            excess = (log_p.exp() - targets).mul(counts[:, None])
            gradient[:, :-1].addmm_(excess.T, x)
            gradient[:, -1] += excess.sum(0)
        return total, gradient

    def held_out_scores(self, head: Tensor) -> tuple[float, float]:
        """Top-1 and mean cross-entropy on the images that are held out."""
        count, hits, total = 0, 0, 0.0
        for x, labels, held in self.chunks():
            scores, labels = logits(x[held], head), labels[held]
            targets = normalised(make_targets(labels, self.classes).double())
            count += len(labels)
            hits += int((scores.argmax(1)[:, None] == labels).any(1).sum())
            total -= float((targets * F.log_softmax(scores, dim=1)).sum())
        return hits / count, total / count


def logits(x: Tensor, head: Tensor) -> Tensor:
    """(m, D), (K, D + 1) -> (m, K)."""
    return F.linear(x, head[:, :-1], head[:, -1])


def has_room(features: Tensor, classes: int, device: torch.device) -> bool:
    """Whether the device has room for a piece beside what a fit needs there."""
    vectors = 2 * HISTORY + 10  # of L-BFGS, in float64
    fit_bytes = 8 * vectors * classes * (features.shape[1] + 1) + 8 * 8 * CHUNK
    return torch.cuda.mem_get_info(device)[0] > fit_bytes + features.nbytes


def minimum(rows: Rows, strength: float, start: Tensor, *, whole: bool) -> tuple[Tensor, Fit]:
    """The head (K, D + 1) that minimises the objective, from `start`; FloatingPointError for NaN.

    L-BFGS sees the same function of other variables, in which it converges faster: the weights of
    features without their mean, which only shifts the free biases, each divided by what makes its
    curvature about 1. All is float64.
    """
    count, mean = rows.count(whole=whole), rows.mean
    scale = (rows.variance + strength / count).rsqrt()
    point = torch.cat([start[:, :-1] / scale, start[:, -1:] + start[:, :-1] @ mean[:, None]], dim=1)
    point = nn.Parameter(point, requires_grad=False)
    optimizer = torch.optim.LBFGS(
        [point],
        max_iter=ITERATIONS,
        max_eval=4 * ITERATIONS,
        history_size=HISTORY,
        tolerance_grad=TOLERANCE,
        tolerance_change=0.0,  # the default would end a fit that starts near its solution
        line_search_fn="strong_wolfe",
    )

    def head() -> Tensor:
        weights = point[:, :-1] * scale
        return torch.cat([weights, point[:, -1:] - weights @ mean[:, None]], dim=1).detach()

    def closure() -> Tensor:
        loss, gradient = rows.loss(head(), whole=whole)
        weights = head()[:, :-1]
        gradient[:, :-1] += strength * weights - gradient[:, -1:] * mean
        gradient[:, :-1] *= scale
        point.grad = gradient / count
        value = (loss + strength / 2 * weights.square().sum()) / count
        if not torch.isfinite(value):
            raise FloatingPointError(f"the loss at strength {strength} is {float(value)}")
        return value

    optimizer.step(closure)
    closure()  # the gradient at the end, which may not be the point that was looked at last
    iterations, gradient = optimizer.state[point]["n_iter"], float(point.grad.abs().max())
    return head(), Fit(strength=strength, iterations=iterations, gradient=gradient)


def search(rows: Rows) -> Iterator[Fit]:
    """The fit of each strength that is tried, and at last that of the best one to all images.

    The best one has the highest top-1 on the images that are held out; of equal ones it is that
    with the lowest loss, and then the strongest.
    """
    heads = {FARTHEST: rows.mean.new_zeros(rows.classes, len(rows.mean) + 1)}
    fits: dict[int, Fit] = {}
    # from the strongest on: weak ones need most iterations, and gain most from a neighbour
    places, step = range(FARTHEST, -FARTHEST - 1, -FIRST_STEP), FIRST_STEP
    while True:
        for place in places:
            if place in fits or abs(place) > FARTHEST:
                continue
            nearest = min(heads, key=lambda other: abs(other - place))
            strength = 10 ** (place / PER_DECADE)
            head, fit = minimum(rows, strength, heads[nearest], whole=False)
            top1, loss = rows.held_out_scores(head)
            heads[place], fits[place] = head, replace(fit, top1=top1, loss=loss)
            yield fits[place]
        best = max(fits, key=lambda place: (fits[place].top1, -fits[place].loss, place))
        if step == 1:
            break
        step //= 2
        places = (best + step, best - step)
    head, fit = minimum(rows, fits[best].strength, heads[best], whole=True)
    yield replace(fit, head=head.float().cpu().numpy())
