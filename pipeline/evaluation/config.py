"""What an evaluation is asked to do; nothing here imports torch or Ray."""

from dataclasses import dataclass, field
from typing import Literal

from vit.config import ImageConfig, LossConfig, ViTConfig
from vit.images import num_views

CENTER = "center"


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """One evaluation: a model, images with labels, and crops."""

    data: str
    """Shard set: a folder or an s3:// or gs:// prefix."""
    split: str = "val"
    """Split of it."""
    crops: tuple[str, ...] = ("ten",)
    """Crop protocols, reported beside the single centre crop: three, five, ten, inception-144,
    random-N."""
    average: Literal["logits", "probabilities"] = "logits"
    """What is averaged over the crops of an image; the two rank classes differently."""
    classes: str | None = None
    """Classes of the model's head, where its file does not say: a list that ships with the
    project, such as goog, a file of WordNet ids, or "data" for the data's own. Known sizes are
    recognised."""
    real: str | None = None
    """ReaL's real.json: reassessed labels of ImageNet's validation images, counted beside the
    originals."""
    v2: str | None = None
    """Shard set of ImageNet-V2 (its split "test" or its only one), evaluated beside the data."""
    out: str | None = None
    """Folder of the result; by default evaluations/ in the run's folder, or in runs/."""
    workers: int = 1
    """Processes that run the model where there is no GPU; with GPUs it is one for each."""
    batch: int = 256
    """Crops per forward pass."""
    precision: Literal["bf16", "fp32"] = "fp32"
    """Arithmetic of the forward pass."""
    model: ViTConfig = field(default_factory=ViTConfig)
    """Shape of the model; read off its file, except what no file says."""
    images: ImageConfig = field(default_factory=ImageConfig)
    loss: LossConfig = field(default_factory=LossConfig)

    def __post_init__(self) -> None:
        """Reject unknown protocols and counts below one."""
        for name in self.crops:
            num_views(name)
        for name in ("workers", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least 1")

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
