"""Figures over classes: the mean of their accuracies, by training frequency, and over WordNet.

    Predictions + classes + images of each class in training -> ClassFigures -> figures by name

    mean_per_class       mean over classes of their top-1
    tail, middle, head   the same over a third of the classes, by their number of training images
    top1_or_above        share of images whose prediction is their class or an ancestor of it
    lca_height           of the other predictions, mean height of the lowest ancestor that they have
                         in common with the class

Each has its 95 % interval, NAME_low and NAME_high: that of `intervals.mean_over_classes` for means
over classes, Wilson's for top1_or_above, that of a normal distribution for lca_height. Classes
without an image in the split take no part.

Shapes: K classes, n images, M labels per image.
"""

import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np

from pipeline.data.class_images import class_images
from pipeline.evaluation.hierarchy import Hierarchy
from pipeline.evaluation.intervals import bounded, mean_over_classes, normal, wilson
from pipeline.evaluation.metrics import FIGURES, Predictions, per_class
from pipeline.evaluation.model import EvalModel
from pipeline.settings.config import DataConfig
from support.redact import redact

log = logging.getLogger(__name__)

# ImageNet-LT divides at 20 and 100 images of a class (Liu et al. 2019, arXiv 1904.05160). Sets of
# other sizes, and shares of them, need other bounds; thirds of the classes fit all.
THIRDS = ("tail", "middle", "head")
# times as many images of the largest class as of the smallest, below which there is no tail:
# ImageNet-1k has 732 to 1,300 images of a class
IMBALANCE = 2


@dataclass(frozen=True, kw_only=True)
class ClassFigures:
    """Computes the figures over the classes of one split."""

    classes: tuple[str, ...]
    """wnids, by class number."""
    trained: Mapping[str, int] | None
    """Images of each wnid that the model was trained on; None if they are not known."""
    why_unknown: str = ""
    """Why they are not known, in words."""

    @classmethod
    def of_model(cls, eval_model: EvalModel, classes: tuple[str, ...]) -> Self:
        """Take the frequencies from the indexes of the data that a checkpoint was trained on.

        Where they cannot be read, the figures by frequency are left out, with a warning.
        """
        if eval_model.training is None:
            trained, why = None, "the file of weights does not say what it was trained on"
        else:
            trained, why = training_images(eval_model.training, eval_model.data, eval_model.run_dir)
        return cls(classes=classes, trained=trained, why_unknown=why)

    def of(self, predictions: Predictions) -> dict[str, float]:
        """All figures that can be computed, with their intervals."""
        images, hits = per_class(predictions, len(self.classes))
        has_images = images > 0
        groups = {"mean_per_class": has_images}
        if (thirds := self._thirds(has_images)) is not None:
            groups |= {name: thirds == number for number, name in enumerate(THIRDS)}
        figures = {}
        for name, members in groups.items():
            if members.any():
                figures |= bounded(name, *mean_over_classes(hits[members], images[members]))
        if isinstance(self._hierarchy, Hierarchy):
            figures |= hierarchical(predictions, self._hierarchy)
        return figures

    def facts(self, predictions: Predictions) -> dict[str, object]:
        """What the figures are of: sizes and bounds of the thirds, and why some are left out."""
        images, _ = per_class(predictions, len(self.classes))
        facts, thirds = {"classes": int((images > 0).sum())}, self._thirds(images > 0)
        left_out = []
        if thirds is None:
            why = self.why_unknown or self._range(images > 0)
            left_out.append(f"head, middle, tail: {why}")
        else:
            counts = self._counts
            groups = {name: counts[thirds == number] for number, name in enumerate(THIRDS)}
            facts["thirds"] = {
                name: {"classes": len(of), "fewest": int(of.min()), "most": int(of.max())}
                for name, of in groups.items()
                if len(of)
            }
        if not isinstance(self._hierarchy, Hierarchy):
            left_out.append(f"figures over WordNet: {self._hierarchy}")
        return facts | {"left_out": left_out}

    @cached_property
    def _counts(self) -> np.ndarray:
        return np.array([self.trained.get(wnid, 0) for wnid in self.classes])

    @cached_property
    def _hierarchy(self) -> Hierarchy | str:
        try:
            return Hierarchy.of(self.classes)
        except ValueError as error:
            return str(error)

    def _thirds(self, has_images: np.ndarray) -> np.ndarray | None:
        """Third of each class, -1 without images: (K,); None if no class is rare."""
        if self.trained is None:
            return None
        counts = self._counts[has_images]
        if not counts.any() or counts.max() < IMBALANCE * counts.min():
            return None
        found = np.full(len(self.classes), -1)
        found[has_images] = thirds_of(counts)
        return found

    def _range(self, has_images: np.ndarray) -> str:
        """Why there are no thirds, although the training images are known."""
        counts = self._counts[has_images]
        if not counts.any():
            return "the model was trained on no image of these classes"
        third = {"fewest": counts.min(), "most": counts.max()}
        return f"all classes have about as many training images, {bounds(third)}"


@functools.cache
def training_images(
    data: DataConfig, location: str, folder: Path | None
) -> tuple[Mapping[str, int] | None, str]:
    """As `class_images`, or None and why they cannot be read, which is tried once in a process."""
    try:
        return class_images(data, location, folder), ""
    except (OSError, ValueError) as error:
        where = f"{redact(location)}, split {data.train_split}"
        why = f"the training data, {where}, cannot be read here ({redact(str(error))})"
        log.warning("head, middle and tail are left out: %s", why)
        return None, why


def thirds_of(counts: np.ndarray) -> np.ndarray:
    """Third of each class by its number of training images, 0 the rarest: (K,) -> (K,).

    Classes with equal numbers stay together, in the third where the middle of their ranks lies.
    """
    ordered = np.sort(counts)
    ranks = [np.searchsorted(ordered, counts, side) for side in ("left", "right")]
    return 3 * sum(ranks) // (2 * len(counts))


def hierarchical(predictions: Predictions, hierarchy: Hierarchy) -> dict[str, float]:
    """Figures over WordNet; an image with several classes has the one that is nearest.

    A prediction above the class is right but vague (Deng et al. 2012, "Hedging your bets"), and is
    no mistake. Images that could not be read count as wrong, at no distance.
    """
    rows, columns = np.nonzero((predictions.labels >= 0) & predictions.answered[:, None])
    # each pair of a prediction and a class is looked up once
    count = len(hierarchy.own)
    pairs = predictions.top[rows, 0].astype(np.int64) * count + predictions.labels[rows, columns]
    pairs, places = np.unique(pairs, return_inverse=True)
    pairs = divmod(pairs, count)
    is_right = np.zeros(len(predictions.top), bool)
    np.logical_or.at(is_right, rows, hierarchy.is_above(*pairs)[places])
    distance = np.full(len(is_right), np.inf)
    np.minimum.at(distance, rows, hierarchy.distances(*pairs)[places])
    mistakes = distance[~is_right & np.isfinite(distance)]
    right = int(is_right.sum())
    figures = bounded("top1_or_above", right / len(is_right), *wilson(right, len(is_right)))
    if len(mistakes) > 1:
        figures |= bounded("lca_height", *normal(mistakes))
    elif len(mistakes):
        figures["lca_height"] = float(mistakes[0])
    return figures


def class_figure_names(result: Mapping) -> list[str]:
    """The figures over classes that the result of an evaluation has."""
    protocols = result["protocols"].values()
    names = [name for name in FIGURES if name != "ece"]
    return [name for name in names if any(name in values for values in protocols)]


def note(name: str, facts: Mapping) -> str:
    """What a figure is of or counts, in words; empty if its title says so."""
    third = facts.get("thirds", {}).get(name)
    if third:
        return f"{third['classes']:,} classes with {bounds(third)} training images"
    return {
        "mean_per_class": f"{facts['classes']:,} classes",
        "lca_height": "in WordNet; normal interval",
    }.get(name, "")


def bounds(third: Mapping[str, int]) -> str:
    """The training images of the classes of a third, from the fewest to the most."""
    fewest, most = third["fewest"], third["most"]
    return f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"
