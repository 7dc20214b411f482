"""The model as a graph for any batch size, and the code that prepares an image for it."""

import torch
from torch import Tensor, nn

import vit.graph
from pipeline.export.config import ExportConfig
from pipeline.export.source import CLASSES_FILE, Source
from vit.batch import channel_factors, scaled
from vit.config import ImageConfig

INPUT = "images"


class Normalised(nn.Module):
    """A model that takes crops (B, S, S, 3) uint8 and normalises them itself."""

    def __init__(self, model: nn.Module, images: ImageConfig) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("factors", channel_factors(images))

    def forward(self, images: Tensor) -> Tensor:
        """Outputs (B, K) of crops."""
        return self.model(scaled(images, self.factors))


def graph_of(source: Source, config: ExportConfig) -> torch.export.ExportedProgram:
    """The graph of the model; the batch is the first axis of its input."""
    size = source.config.image_size
    if config.preprocess:
        model = Normalised(source.model, source.images).eval()
        return vit.graph.graph_of(model, (size, size, 3), torch.uint8)
    return vit.graph.graph_of(source.model, (3, size, size))


def image_code(source: Source, config: ExportConfig) -> str:
    """Code that makes the NumPy array `images` for the graph from image.jpg, with Pillow."""
    size, images = source.config.image_size, source.told
    side = images.eval_side(size)
    if images.eval_resize == "squash":
        resized = f"({side}, {side})"
    else:
        resized = f"[round({side} * length / min(image.size)) for length in image.size]"
    lines = [
        'image = Image.open("image.jpg").convert("RGB")',
        f"sides = {resized}",
        f"image = image.resize(sides, Image.Resampling.{images.eval_interpolation.upper()})",
        f"left, top = (image.width - {size}) // 2, (image.height - {size}) // 2",
        f"images = np.asarray(image.crop((left, top, left + {size}, top + {size})))[None]",
    ]
    if not config.preprocess:
        mean, std = (list(values) for values in (images.mean, images.std))
        lines.append(f"images = (images / 255 - {mean}) / {std}")
        lines.append("images = images.transpose(0, 3, 1, 2).astype(np.float32)")
    return "\n".join(lines)


def name_code(source: Source) -> str:
    """Code that looks up the class of the array or tensor `logits`; none without classes."""
    if source.classes is None:
        return ""
    return f'name = open("{CLASSES_FILE}").read().splitlines()[int(logits[0].argmax())]\n'
