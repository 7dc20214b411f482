"""What an evaluation is asked to do; nothing here imports torch or Ray."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Self

from pipeline.settings.config import absolute
from support.settings import Rule, Settings, setting
from vit.config import ImageConfig, LossConfig, ViTConfig
from vit.registry import num_views

CENTER = "center"


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Settings):
    """One evaluation: a model, images with labels, and crops."""

    data: str = setting("", common=True)
    """Shard set: a folder or an s3:// or gs:// prefix."""
    split: str = setting("val", common=True)
    """Split of it."""
    crops: tuple[str, ...] = setting(("ten",), common=True)
    """Crop protocols, reported beside the single centre crop: three, five, ten, inception-144,
    random-N."""
    average: Literal["logits", "probabilities"] = setting("logits", common=True)
    """What is averaged over the crops of an image; the two rank classes differently."""
    classes: str | None = setting(None, common=True)
    """Classes of the model's head, where its file does not say: a list that ships with the
    project, such as goog, a file of WordNet ids, or "data" for the data's own. Known sizes are
    recognised."""
    real: str | None = setting(None, common=True)
    """ReaL's real.json: reassessed labels of ImageNet's validation images, counted beside the
    originals."""
    v2: str | None = setting(None, common=True)
    """Shard set of ImageNet-V2 (its split "test" or its only one), evaluated beside the data."""
    out: str | None = setting(None, common=True)
    """Folder of the result; by default evaluations/ in the run's folder, or in runs/."""
    workers: int = setting(1, common=True)
    """Processes that run the model where there is no GPU; with GPUs it is one for each."""
    batch: int = setting(256, common=True)
    """Crops per forward pass."""
    precision: Literal["bf16", "fp32"] = setting("fp32", common=True)
    """Arithmetic of the forward pass."""
    model: ViTConfig = setting(ViTConfig)
    """Shape of the model; read from its file, except what no file says."""
    images: ImageConfig = setting(ImageConfig)
    loss: LossConfig = setting(LossConfig)

    def rules(self) -> Iterator[Rule]:
        """Crop protocols that there are, and counts that are positive."""
        for name in self.crops:
            try:
                num_views(name)
            except ValueError as error:
                yield "crops", f"has {name!r}, which is not a crop protocol: {error}"
        for name in ("workers", "batch"):
            if getattr(self, name) < 1:
                yield name, "must be at least 1"

    def absolute(self) -> Self:
        """The config with absolute paths: workers run in other folders, on other machines."""
        paths = {name: getattr(self, name) for name in ("data", "v2", "real", "out")}
        return self.replace({name: absolute(path) for name, path in paths.items()})

    @property
    def protocols(self) -> tuple[str, ...]:
        """All protocols, the single centre crop first, each once."""
        return tuple(dict.fromkeys((CENTER, *self.crops)))

    @property
    def views(self) -> int:
        """Crops of one image under all protocols."""
        return sum(map(num_views, self.protocols))

    @property
    def batch_images(self) -> int:
        """Images per forward pass."""
        return max(1, self.batch // self.views)
