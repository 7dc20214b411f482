"""Predictions of a model for every image of a split, with one crop and with many.

    split -> each image decoded once -> crops of every protocol -> logits, averaged over the crops
    -> top-5, confidence and loss of every image -> predictions (on disk) -> metrics

`pipeline.evaluation.workers` spreads it over a cluster; `pipeline.evaluation.training_loop`
evaluates in training.

Shapes: B images, C crops of all protocols, K classes of the head, M labels per image (padded with
-1).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.data.dataset import Dataset
from pipeline.data.feed import NodeFeed
from pipeline.data.reader import SampleReader, View
from pipeline.data.staging import Staged, Staging
from pipeline.data.stream import Block, Stream, ahead
from pipeline.evaluation.config import EvaluateConfig
from pipeline.evaluation.forward import Forward
from pipeline.evaluation.share import EvalShare
from pipeline.evaluation.unreadable import FAULT, without_answers
from shards.dataset import wordnet
from vit.config import LossConfig
from vit.loss import LINKS, Link, Loss, make_loss, make_targets
from vit.model import ViT
from vit.registry import LOSSES, num_views

# predictions per image
TOP = 5
# decoded crops of one task: about half a second of work
TASK_BYTES = 128 << 20
# memory of the object store that the crops of one worker may fill
BUFFER_GIB = 2.0
# decoded batches that are on the device ahead of the model
PREFETCH_BATCHES = 3


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """The images, their crops and their scoring; it is sent to the workers."""

    dataset: Dataset
    settings: EvaluateConfig
    columns: Tensor | None = None
    """(classes of the data,) int64: output of the head for each class, or -1; None: they agree."""

    def predictions(self, model: ViT, feed: NodeFeed, share: EvalShare) -> Iterator[Block]:
        """Predictions for the positions of a share, batch by batch.

        Returns:
            position (B,), labels (B, M), fault (B,) as of a SampleReader, and for each protocol
            PROTOCOL/top (B, 5), PROTOCOL/confidence (B,) and PROTOCOL/loss (B,). An image that
            could not be read has no answer, as in `without_answers`.
        """
        score, device = self.scoring(model), next(model.parameters()).device
        pending: tuple[dict[str, Tensor], np.ndarray] | None = None
        with torch.no_grad():  # inference mode would leave its mark on sharded parameters
            for columns, faults in self.batches(feed, share, device):
                scores = score(columns["images"], columns["labels"])
                if pending:  # fetched one batch late, so that the device never waits for the reader
                    yield answers(*pending)
                pending = {name: columns[name] for name in ("position", "labels")} | scores, faults
            if pending:
                yield answers(*pending)

    def scoring(self, model: ViT) -> Callable[[Tensor, Tensor], dict[str, Tensor]]:
        """The function from crops (B, C, S, S, 3) and labels (B, M) to the predictions."""
        forward = Forward(model, self.settings)
        scorer = Scorer(self, forward.device)

        def score(images: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = forward(images.flatten(0, 1))
            return scorer(logits.unflatten(0, images.shape[:2]), labels)

        return score

    def batches(
        self, feed: NodeFeed, share: EvalShare, device: torch.device
    ) -> Iterator[tuple[Mapping[str, Tensor], np.ndarray]]:
        """Crops "images" (B, C, S, S, 3) uint8, "labels" and "position", on the device; faults.

        An image that could not be read is blank, and its fault (B,) says why.
        """
        view = view_of(self.settings)
        stream = Stream(
            reader=SampleReader(dataset=self.dataset, view=view, skip=True),
            order=self.dataset.order(seed=None),
            ranges=share.node,
            task_samples=max(1, TASK_BYTES // math.prod(view.shape)),
            buffer_gib=BUFFER_GIB * len(feed.ranks),
        )
        staging = Staging(device)

        def staged(pieces: list[Block]) -> tuple[Staged, np.ndarray]:
            faults = np.concatenate([piece["fault"] for piece in pieces])
            return staging(pieces, ("images", "labels", "position")), faults

        pieces = filter(None, feed.batches(stream, share.batches))
        batches = ahead(map(staged, pieces), PREFETCH_BATCHES)
        return ((images.on_device(), faults) for images, faults in batches)


def view_of(settings: EvaluateConfig) -> View:
    """The views of an image that an evaluation needs."""
    return View(
        images=settings.images, size=settings.model.image_size, protocols=settings.protocols
    )


def model_of(settings: EvaluateConfig, weights: Mapping[str, Tensor]) -> ViT:
    """The model in evaluation mode, on the GPU of this process if it has one."""
    model = ViT(settings.model).eval()
    model.load_state_dict(weights)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


class Scorer:
    """Computes the predictions of images from the logits of their crops."""

    def __init__(self, evaluator: Evaluator, device: torch.device) -> None:
        """Make the loss and the tables of classes, on the device."""
        settings, columns = evaluator.settings, evaluator.columns
        classes, is_mapped = evaluator.dataset.classes, columns is not None
        self.protocols, self.average = settings.protocols, settings.average
        self.link = LINKS[LOSSES[settings.loss.name].link]
        self.loss = eval_loss(settings.loss, classes, device, mapped=is_mapped)
        self.outputs = self.class_numbers = self.output_index = None
        if is_mapped:
            numbers = (columns >= 0).nonzero()[:, 0]
            # outputs of the head that are classes of the data, and the number of each class: (N,)
            self.outputs, self.class_numbers = columns[numbers].to(device), numbers.to(device)
            # for each class its index among these outputs, or -1; padding (-1) reads the last entry
            output_index = torch.full((len(columns) + 1,), -1)
            output_index[numbers] = torch.arange(len(numbers))
            self.output_index = output_index.to(device)

    def __call__(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Logits (B, C, K) and labels (B, M) of the data -> the predictions of each protocol."""
        if self.outputs is not None:
            logits, labels = logits[..., self.outputs], self.output_index[labels]
        targets = make_targets(labels, logits.shape[-1])
        has_no_class = ~labels.ge(0).any(1)
        predictions = {}
        views = [num_views(name) for name in self.protocols]
        for name, crops in zip(self.protocols, logits.split(views, 1), strict=True):
            mean = average(crops, self.average, self.link)
            top = mean.topk(min(TOP, mean.shape[1])).indices
            if self.class_numbers is not None:
                top = self.class_numbers[top]
            loss = self.loss(mean, targets).double()
            predictions[f"{name}/confidence"] = self.link.confidence(mean).double()
            predictions[f"{name}/loss"] = loss.masked_fill(has_no_class, torch.nan)
            predictions[f"{name}/top"] = F.pad(top, (0, TOP - top.shape[1]), value=-2).int()
        return predictions


def average(crops: Tensor, how: str, link: Link) -> Tensor:
    """Logits of each image from the logits of its crops: (B, C, K) -> (B, K).

    If `how` is "logits", their mean. If it is "probabilities", the logits whose probabilities under
    `link` are the mean of the crops' probabilities; ranking, confidence and loss follow from them.
    """
    return crops.mean(1) if how == "logits" else link.mean(crops)


def eval_loss(
    config: LossConfig, classes: Sequence[str], device: torch.device, *, mapped: bool
) -> Loss:
    """The training loss without label smoothing.

    If the data has other classes than the head (`mapped`), only some outputs are used. They do not
    form a tree, so softmax then replaces a loss over the tree of classes.
    """
    needs_tree = LOSSES[config.name].needs_tree
    if mapped and needs_tree:
        return make_loss(LossConfig())
    plain = config.replace({"label_smoothing": 0.0})
    return make_loss(plain, parents=wordnet.parents(classes) if needs_tree else None, device=device)


def fetched(batch: Mapping[str, Tensor]) -> Block:
    """A batch as NumPy arrays."""
    return {name: tensor.cpu().numpy() for name, tensor in batch.items()}


def answers(batch: Mapping[str, Tensor], faults: np.ndarray) -> Block:
    """A batch as NumPy arrays, with its faults (B,); an image that has one gets no answer."""
    return without_answers(fetched(batch), faults != "") | {FAULT: faults}
