"""Settings of an evaluation; this module imports neither torch nor Ray."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Self

from pipeline.settings.config import absolute
from support.settings import Rule, Settings, below, setting
from vit.config import ImageConfig, LossConfig, ViTConfig
from vit.registry import num_views

CENTER = "center"
# in the folder of an evaluation
RESULT = "result.json"


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Settings):
    """One evaluation: a model, images with labels, and crop protocols."""

    data: str = setting("", common=True)
    """Shard set: a folder or an s3:// or gs:// prefix."""
    split: str = setting("val", common=True)
    """Split of the shard set."""
    crops: tuple[str, ...] = setting(("ten",), common=True)
    """Crop protocols, reported next to the single centre crop: three, five, ten, inception-144,
    random-N."""
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
    out: str | None = setting(None, common=True)
    """Folder of the result; by default evaluations/ in the run's folder, or in runs/."""
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
    loss: LossConfig = setting(LossConfig)

    def rules(self) -> Iterator[Rule]:
        """Crop protocols exist, and counts are positive."""
        for name in self.crops:
            try:
                num_views(name)
            except ValueError as error:
                yield "crops", f"has {name!r}, which is not a crop protocol: {error}"
        yield from below(self, 1, "workers", "batch")

    def absolute(self) -> Self:
        """The config with absolute paths: workers run in other folders, on other machines."""
        paths = ("data", "v2", "real", "out")
        return self.replace({name: absolute(getattr(self, name)) for name in paths})

    @property
    def protocols(self) -> tuple[str, ...]:
        """All protocols without repeats, the single centre crop first."""
        return tuple(dict.fromkeys((CENTER, *self.crops)))

    @property
    def views(self) -> int:
        """Crops of one image under all protocols."""
        return sum(map(num_views, self.protocols))

    @property
    def batch_images(self) -> int:
        """Images per forward pass."""
        return max(1, self.batch // self.views)
