"""Settings of an evaluation; this module imports neither torch nor Ray."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Literal, Self

from pipeline.settings.location import absolute
from support.settings import Rule, Settings, below, setting
from vit.config import ImageConfig, LossConfig, ViTConfig
from vit.registry import crop_protocol, num_views, resolve

CENTER = "center"
# in the folder of an evaluation, and in that of a finished run
RESULT = "result.json"


@dataclass(frozen=True, kw_only=True)
class ForwardConfig(Settings):
    """A model, the images that it is run on, and how."""

    data: str = setting("", common=True)
    """Shard set: a folder or an s3:// or gs:// prefix."""
    split: str = setting("val", common=True)
    """Split to evaluate on."""
    out: str | None = setting(None, common=True)
    """Folder of the result, not in a store; by default in evaluations/ or probes/ of the run's
    folder, or of runs/."""
    workers: int = setting(1, common=True)
    """Processes that run the model on CPUs; with GPUs there is one process per GPU."""
    batch: int = setting(256, common=True)
    """Crops per forward pass."""
    precision: Literal["bf16", "tf32", "fp32"] = setting("tf32", common=True)
    """Precision of the forward pass; tf32 is fp32 on CPUs."""
    compile: bool = setting(True, common=True)
    """Compile the forward pass with torch.compile on GPUs."""
    model: ViTConfig = setting(ViTConfig)
    """Shape of the model; read from its file as far as the file states it."""
    images: ImageConfig = setting(ImageConfig)

    def rules(self) -> Iterator[Rule]:
        """Counts are positive, and results go to a folder."""
        yield from below(self, 1, "workers", "batch")
        if self.out and "://" in self.out:
            yield "out", "must be a folder: that of a run in a store goes there without it"

    def absolute(self) -> Self:
        """The config with absolute paths: workers run in other folders, on other machines."""
        return self.replace({name: absolute(getattr(self, name)) for name in self.paths})

    @property
    def paths(self) -> tuple[str, ...]:
        """Names of the settings that are paths."""
        return "data", "out"


@dataclass(frozen=True, kw_only=True)
class LinearProbeConfig(ForwardConfig):
    """One linear probe: a body, and the images to fit and to evaluate a head on."""

    train_split: str = setting("train", common=True)
    """Split to fit the head on; a tenth of it, by the hash of the images, selects the strength of
    the regularisation."""

    def rules(self) -> Iterator[Rule]:
        """What selects and fits must not be what is reported."""
        yield from super().rules()
        if self.train_split == self.split:
            yield "train_split", "must be another split than split, on which the head is evaluated"

    @property
    def center(self) -> "EvaluateConfig":
        """The evaluation with one centre crop in which the model is run."""
        shared = {item.name: getattr(self, item.name) for item in fields(ForwardConfig)}
        return EvaluateConfig(crops=(CENTER,), **shared)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ForwardConfig):
    """One evaluation: a model, images with labels, and crop protocols."""

    crops: tuple[str, ...] = setting(("ten",), common=True)
    """Crop protocols, reported next to the single centre crop: three, five, ten, five-torchvision,
    ten-torchvision, inception-144, random-N. Five and ten are AlexNet's corners of the central
    square, and those of torchvision are of the whole image. All of them need room, and resize to
    the image size / images.crop_pct, or times 256/224 if that is more; the result says to what."""
    average: Literal["logits", "probabilities"] = setting("logits", common=True)
    """What is averaged over the crops of an image; the two can rank classes differently."""
    classes: str | None = setting(None, common=True)
    """Classes of the model's head, if its file does not list them: a list that ships with the
    project, such as goog, a file of WordNet ids, or "data" for the classes of the data. Heads of
    known sizes are recognised."""
    real: str | None = setting(None, common=True)
    """ReaL's real.json: reassessed labels of ImageNet's validation images, evaluated along with
    the original labels."""
    v2: str | None = setting(None, common=True)
    """Shard set of ImageNet-V2 (split "test", or its only split), evaluated along with the data."""
    loss: LossConfig = setting(LossConfig)

    def rules(self) -> Iterator[Rule]:
        """Crop protocols exist."""
        yield from super().rules()
        for name in self.crops:
            try:
                num_views(name)
            except ValueError as error:
                yield "crops", f"has {name!r}, which is not a crop protocol: {error}"

    @property
    def paths(self) -> tuple[str, ...]:
        """Names of the settings that are paths."""
        return "data", "out", "v2", "real"

    @property
    def protocols(self) -> tuple[str, ...]:
        """All protocols without repeats, the single centre crop first."""
        return tuple(dict.fromkeys((CENTER, *self.crops)))

    @property
    def views(self) -> int:
        """Crops of one image under all protocols."""
        return sum(map(num_views, self.protocols))

    @property
    def resized(self) -> dict[str, list[int]]:
        """Sides in pixels to which each protocol resizes an image; none: it crops the original."""
        size, sides = self.model.image_size, {n: crop_protocol(n).sides for n in self.protocols}
        return {n: list(resolve(function)(self.images, size)) for n, function in sides.items()}

    @property
    def described_crops(self) -> str:
        """The crops of each protocol, and the size of the image that they are taken from."""
        size, texts = self.model.image_size, []
        for name, sides in self.resized.items():
            places = f"{', '.join(map(str, sides))} pixels" if sides else "the whole image"
            texts.append(f"{name}: {size} of {places}")
        return "; ".join(texts)

    @property
    def batch_images(self) -> int:
        """Images per forward pass."""
        return max(1, self.batch // self.views)
