"""A linear probe: a new head on a frozen body, fitted to features that are computed once.

    train split -> features -> part held out by hash -> logistic regression -> head
    eval split -> features -> head -> accuracy; body and head -> a checkpoint

FOLDER/result.json                  accuracy on the eval split, protocol, strength, curve of the
                                    search
FOLDER/checkpoints/step-*/          body and head, as a checkpoint of a run
FOLDER/features/SPLIT/parts/        features and labels; not needed any more beside a result

What selects the strength of the regularisation is held out of the train split; the eval split is
only reported on.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pipeline.checkpoint import local
from pipeline.checkpoint.checkpoints import Checkpoints
from pipeline.checkpoint.draft import Draft
from pipeline.checkpoint.local import Checkpoint
from pipeline.checkpoint.run_folder import CHECKPOINTS, PROBES, RunFolder
from pipeline.checkpoint.sharded import Snapshot
from pipeline.data.class_images import class_images
from pipeline.data.dataset import Dataset, SampleFilter, set_name
from pipeline.data.stream import joined
from pipeline.evaluation import evaluate
from pipeline.evaluation.class_figures import ClassFigures
from pipeline.evaluation.config import CENTER, LinearProbeConfig
from pipeline.evaluation.evaluate import RESULT, Progress, figures, named, sample_keys
from pipeline.evaluation.features import FeatureReader
from pipeline.evaluation.logistic import Fit, logits
from pipeline.evaluation.metrics import METRICS, Predictions
from pipeline.evaluation.model import EvalModel
from pipeline.evaluation.predict import Scorer, fetched
from pipeline.evaluation.predictions import PredictionStore, protocol_predictions
from pipeline.evaluation.probe_fits import fits_of
from pipeline.evaluation.unreadable import COUNTS_AS_WRONG, named_faults, without_answers
from pipeline.evaluation.workers import predict_all
from pipeline.settings.config import DataConfig
from shards.dataset import store
from support.files import write_json
from support.redact import redact
from support.settings import Settings
from vit.config import ImageConfig, LossConfig, ViTConfig

log = logging.getLogger(__name__)

PROTOCOL = (
    "multinomial logistic regression by L-BFGS on the features of centre crops, its strength "
    "searched on a held-out tenth of the train split (CLIP, arXiv 2103.00020, A.3)"
)
# share of the train split that selects, by the hash of the images' bytes
HELD_OUT = 0.1


@dataclass(frozen=True, kw_only=True)
class ProbedConfig(Settings):
    """Settings of a run that hold for a probed checkpoint, under the names that a run gives them.

    A run has more: how it trained. The body's training is described where the body is.
    """

    name: str
    init_from: str
    """The checkpoint whose body it is."""
    data: DataConfig
    model: ViTConfig
    images: ImageConfig
    loss: LossConfig
    precision: Literal["bf16", "fp32"]


@dataclass(frozen=True, kw_only=True)
class LinearProbe:
    """A probe whose model, images and settings are consistent."""

    eval_model: EvalModel
    settings: LinearProbeConfig
    """`model` is that of the checkpoint that will be written."""
    train: Dataset
    eval: Dataset
    held_out: np.ndarray
    """(n,) bool: which images of the train split select."""
    weights: str
    """SHA-256 of the body's file."""

    @classmethod
    def open(cls, eval_model: EvalModel, settings: LinearProbeConfig) -> "LinearProbe":
        """Read the indexes of the images; ValueError if a split is missing or too small."""
        train, test = (
            replace(dataset, classes=named(dataset.classes))
            for dataset in (
                Dataset.open((settings.data,), split, slice_samples=32)
                for split in (settings.train_split, settings.split)
            )
        )
        held_out = selecting(train)
        if not 0 < held_out.sum() < len(held_out):
            raise ValueError(
                f"split {settings.train_split!r} of {redact(settings.data)} has {len(held_out)} "
                f"images, of which {held_out.sum()} are held out to select the regularisation, a "
                f"tenth by their hash; a probe needs some on both sides: use more images"
            )
        changes = {"model.num_classes": len(train.classes), "model.pre_logits": False}
        return cls(
            eval_model=eval_model,
            settings=settings.replace(changes),
            train=train,
            eval=test,
            held_out=held_out,
            weights=eval_model.sha256(),
        )

    @property
    def folder(self) -> Path:
        """Folder of the result; by default one per probe of each model."""
        settings = self.settings
        if settings.out:
            return Path(settings.out)
        values = [self._identity(settings.train_split), self._identity(settings.split)]
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
        base = self.eval_model.run_dir or Path("runs").absolute()
        name = f"{self.eval_model.path.stem}-{set_name(settings.data)}-{digest[:8]}"
        return base / PROBES / name

    @property
    def kept(self) -> tuple[str, ...]:
        """What goes where the run is, by its name in the run's folder; the result comes last."""
        inside = self.folder.relative_to(self.eval_model.run_dir)
        return str(inside / "checkpoints"), str(inside / RESULT)

    def pull(self, run: RunFolder) -> None:
        """Take a finished probe of a run in a store from there: another machine made it."""
        name, folder = f"{PROBES}/{self.folder.name}", self.folder / CHECKPOINTS
        if (self.folder / RESULT).exists() or not (data := run.read(f"{name}/{RESULT}")):
            return
        found = Checkpoints(folder=folder, uri=store.join(run.uri, name, CHECKPOINTS))
        checkpoint = found.fetch(found.latest())
        here = {"checkpoint": str(self.eval_model.path), "probed": str(checkpoint.path)}
        # the result comes last
        write_json(self.folder / RESULT, json.loads(data) | here)

    def _identity(self, split: str) -> dict[str, object]:
        """Everything that the features of a split depend on."""
        dataset = self.train if split == self.settings.train_split else self.eval
        settings = self.settings.center.replace({"split": split})
        return {"features": "head input", **evaluate.identity(settings, dataset, self.weights)}

    def store(self, split: str) -> PredictionStore:
        """Where the features of a split are; ValueError if those of another model are there."""
        dataset = self.train if split == self.settings.train_split else self.eval
        return PredictionStore(
            self.folder / "features" / split,
            self._identity(split),
            images=dataset.samples,
            batch=self.settings.batch,
        )

    def run(self, progress: Callable[[str], Progress]) -> dict:
        """Compute what is not on disk, and write the folder; returns the content of result.json.

        `progress` is called with the name of a split. Ray must be running.
        """
        settings = self.settings
        stores = [self.store(split) for split in (settings.train_split, settings.split)]
        if (self.folder / RESULT).exists():
            return json.loads((self.folder / RESULT).read_text())
        model = self.eval_model.load(settings.model, head="drop")
        for dataset, features in zip((self.train, self.eval), stores, strict=True):
            reader = FeatureReader(dataset=dataset, settings=settings.center)
            predict_all(reader, model, features, progress(features.folder.name))
        unreadable = self._unreadable([features.faults() for features in stores])
        fits = []
        for fit in fits_of(stores[0], self.held_out, len(self.train.classes)):
            fits.append(fit)
            log.info("%s", described(fit))
        head = torch.from_numpy(fits[-1].head.copy())  # Ray's arrays cannot be written to
        values = figures({CENTER: self._predictions(stores[1], head)}, self._class_figures())
        model.head.weight.data, model.head.bias.data = head[:, :-1], head[:, -1]
        checkpoint = self._write(model.state_dict(), values["protocols"][CENTER])
        result = {"probed": str(checkpoint.path), **self._facts(fits), **unreadable, **values}
        write_json(self.folder / RESULT, result)
        return result

    def _unreadable(self, faults: Sequence[dict[int, str]]) -> dict[str, object]:
        """What result.json says of unreadable images; ValueError if too few others are left."""
        splits, (missing, wrong) = (self.settings.train_split, self.settings.split), faults
        left = np.delete(self.held_out, list(missing))
        if not 0 < left.sum() < len(left):
            raise ValueError(f"too few images of {splits[0]} can be read: {len(left)} of them")
        keys = sample_keys(self.train), sample_keys(self.eval)
        return {
            "train_unreadable": named_faults(missing, keys[0], splits[0], "is left out of the fit"),
            "unreadable": named_faults(wrong, keys[1], splits[1], COUNTS_AS_WRONG),
        }

    def _facts(self, fits: Sequence[Fit]) -> dict[str, object]:
        """What result.json says beside the accuracy."""
        settings, (*tried, last) = self.settings, fits
        return {
            "checkpoint": str(self.eval_model.path),
            "step": self.eval_model.step,
            "weights_sha256": self.weights,
            "data": redact(settings.data),
            "train_split": settings.train_split,
            "split": settings.split,
            "fingerprint": self.eval.fingerprint,
            "train_images": len(self.held_out),
            "held_out": int(self.held_out.sum()),
            "images": self.eval.samples,
            "precision": settings.precision,
            "protocol": PROTOCOL,
            "strength": last.strength,
            "iterations": last.iterations,
            "gradient": last.gradient,
            "search": [record(fit) for fit in sorted(tried, key=lambda fit: fit.strength)],
        }

    def _class_figures(self) -> ClassFigures:
        """Those of the split, by the frequency of the classes among the images of the fit."""
        data = DataConfig(dir=self.settings.data, train_split=self.settings.train_split)
        images = class_images(data, self.settings.data).values()
        classes = self.train.classes
        return ClassFigures(classes=classes, trained=dict(zip(classes, images, strict=True)))

    def _predictions(self, store: PredictionStore, head: Tensor) -> Predictions:
        """What the head answers for the images of the eval split."""
        reader = FeatureReader(dataset=self.eval, settings=self.settings.center)
        scorer, blocks = Scorer(reader, head.device), []
        faults = list(store.faults())
        for unit in store.units():
            labels = torch.from_numpy(unit["labels"])
            scores = scorer(logits(torch.from_numpy(unit["features"]), head)[:, None], labels)
            is_fault = np.isin(unit["position"], faults)
            blocks.append({"labels": unit["labels"], **without_answers(fetched(scores), is_fault)})
        return protocol_predictions(joined(blocks), CENTER)

    def _write(self, weights: dict[str, Tensor], metrics: dict[str, float]) -> Checkpoint:
        """Write body and head as a checkpoint, whose step is that of the body."""
        settings = self.settings
        draft = Draft(
            checkpoints=Checkpoints(folder=self.folder / CHECKPOINTS),
            step=self.eval_model.step or 0,
        )
        draft.begin()
        data = {
            "dir": settings.data,
            "train_split": settings.train_split,
            "eval_split": settings.split,
        }
        return draft.commit(
            draft.add(Snapshot(weights=weights).write),
            provenance=local.provenance(),
            samples=0,
            metrics={f"val/{name}": metrics[name] for name in METRICS if name in metrics},
            config=ProbedConfig(
                name=self.folder.name,
                init_from=str(self.eval_model.path),
                data=DataConfig(**data),
                model=settings.model,
                images=settings.images,
                loss=settings.center.loss,
                precision="bf16" if settings.precision == "bf16" else "fp32",
            ),
            classes=self.train.classes,
            fingerprint=self.train.fingerprint,
        )


def selecting(dataset: Dataset) -> np.ndarray:
    """Which images of a split select, by position: (n,) bool."""
    part = SampleFilter(fraction=HELD_OUT)
    masks = [part.of_index(subset.shards.read_index(shard)) for subset, shard in dataset.shards]
    return np.concatenate(masks)


def described(fit: Fit) -> str:
    """A fit in one line."""
    ended = f"{fit.iterations:,} iterations to a gradient of {fit.gradient:.1e}"
    if fit.top1 is None:
        return f"fit       strength {fit.strength:.2e}  all images  {ended}"
    scores = f"held out: top-1 {fit.top1:.4f}  loss {fit.loss:.4f}"
    return f"search    strength {fit.strength:.2e}  {scores}  {ended}"


def record(fit: Fit) -> dict[str, float]:
    """A fit of the search for result.json."""
    return {name: value for name, value in asdict(fit).items() if name != "head"}
