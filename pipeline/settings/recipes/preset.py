"""What a preset is: the settings of a named run, and their provenance."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.settings.budget import PUBLISHED
from pipeline.settings.config import DataConfig, TrainConfig
from pipeline.settings.upsampling import needs
from vit.config import ImageConfig, ViTConfig

IN21K, IN21K_P, IN1K = "data/in21k", "data/in21k-p", "data/in1k"
# departures that several sources share
FULL_SIZE = "shards have images of 256 pixels unless they are built otherwise, not of full size"
GOOGLE_21K = (
    "trains on 12,195,150 images of winter21's 19,167 classes, one class each; Google's 21,843 "
    "classes of fall11 have 14.2 million files, 12.4 million with duplicates merged, some of "
    "several classes (google-research/vision_transformer/issues/28)"
)
ALL_IMAGES = "trains on all images, not on 99 % of them"
FIRST_MOMENT = "the first moment is float32, not bfloat16"
PAIRS = (
    "mixup draws a weight for each pair of neighbours; big_vision draws one for the images of a "
    "device and mixes each with the next"
)
# training images/s of one RTX 3090 at 224 and at 384 pixels: timm,
# results/benchmark-train-amp-nhwc-pt112-cu113-rtx3090.csv
RTX_3090 = {
    "Ti/16": {224: 2300, 384: 511},
    "S/32": {224: 4446, 384: 1456},
    "S/16": {224: 1058, 384: 239},
    "B/32": {224: 1709, 384: 543},
    "B/16": {224: 393, 384: 97},
    "L/16": {224: 117, 384: 29},
}


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named run."""

    config: TrainConfig
    summary: str
    """What the run trains, in one line."""
    source: str
    """Where the recipe is published: paper and table, or file."""
    expected: str
    """Accuracy according to the source."""
    size: str | None = None
    """Name of the model, such as S/16; None if it is not a published one."""
    checkpoint: str | None = None
    """Released checkpoint with the same settings, if any."""
    departs: tuple[str, ...] = ()
    """What differs from the source: what no setting of this project says, and the data."""
    measured: str = "not yet"
    """Accuracy measured with this project."""
    of_weights: Callable[[ViTConfig, ImageConfig], TrainConfig] | None = None
    """Gives the settings for weights of a model whose images are so prepared, in place of `config`;
    None if the size is that of the preset."""

    @property
    def gpu_hours(self) -> float | None:
        """Cost in hours of one RTX 3090; None if no GPU is needed."""
        if self.size is None:
            return None
        samples, *_ = PUBLISHED[Path(self.config.data.dir).name]
        images = self.config.steps(samples) * self.config.global_batch
        return images / RTX_3090[self.size][self.config.model.image_size] / 3600

    @property
    def evaluation(self) -> str:
        """How validation images are cropped."""
        size, images = self.config.model.image_size, self.config.images
        side = images.eval_side(size)
        resized = "both sides" if images.eval_resize == "squash" else "the shorter side"
        centre = f", centre of {size}" if side > size or images.eval_resize == "short" else ""
        return f"{resized} resized to {side} ({images.eval_interpolation}){centre}"

    def __str__(self) -> str:
        """The summary, and one line for everything else except the settings."""
        cost = f"{self.gpu_hours:,.0f} GPU-hours (RTX 3090)" if self.size else "no GPU needed"
        if self.of_weights:
            cost = "that of the size of the weights, which --plan shows"
        rows = {
            "source": self.source,
            "released": self.checkpoint or "no known checkpoint has these settings",
            "departs": "; ".join(self.departs),
            "evaluated": self.evaluation,
            "expected": self.expected,
            "measured": self.measured,
            "images": needs(self.config),
            "cost": cost,
        }
        return "\n".join(
            [self.summary, *(f"  {name:<10}{text}" for name, text in rows.items() if text)]
        )


def run(name: str, data: str, **settings: Any) -> TrainConfig:  # noqa: ANN401 - of any type
    """Settings that all presets on ImageNet share."""
    return TrainConfig(name=name, data=DataConfig(dir=data), workers=8, **settings)


def short(size: str) -> str:
    """A size as it stands in names of runs: s16."""
    return size.lower().replace("/", "")
