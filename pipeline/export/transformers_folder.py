"""A folder for transformers: ViT or DINOv2, with its image processor.

model.safetensors, config.json and preprocessor_config.json, as AutoModelForImageClassification and
AutoImageProcessor read them.
"""

from pathlib import Path

from torch import Tensor

from pipeline.evaluation.model import PREPROCESSOR_FILE, RESAMPLES
from pipeline.export.check import Network
from pipeline.export.config import ExportConfig
from pipeline.export.source import Source
from support.files import write_json
from vit.config import ImageConfig, ViTConfig
from vit.weights import save_weights


def write(source: Source, folder: Path, config: ExportConfig) -> None:
    """Write the three files; ValueError lists the settings that transformers' models lack."""
    dialect, labels = dialect_for(source.config), list(source.labels.values())
    save_weights(folder, source.model, dialect, config.head, source.metadata, labels)
    write_json(folder / PREPROCESSOR_FILE, processor(source.told, source.config.image_size))


def dialect_for(config: ViTConfig) -> str:
    """The family of models that has the most of a model's settings."""
    if config.registers:
        return "transformers-dinov2-registers"
    return "transformers-dinov2" if config.layer_scale is not None else "transformers"


def processor(images: ImageConfig, size: int) -> dict[str, object]:
    """The contents of preprocessor_config.json.

    ViT's processor squashes an image to the size of the model; BiT's, which is DINOv2's too,
    resizes and crops the centre.
    """
    side, is_square = images.eval_side(size), images.eval_resize == "squash"
    square, crops = {"height": side, "width": side}, side != size or not is_square
    numbers = {name: number for number, name in RESAMPLES.items()}
    settings = {
        "image_processor_type": "BitImageProcessor" if crops else "ViTImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": square if is_square else {"shortest_edge": side},
        "resample": numbers[images.eval_interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": images.mean,
        "image_std": images.std,
    }
    crop = {"do_center_crop": True, "crop_size": {"height": size, "width": size}}
    return settings | (crop if crops else {})


def opened(source: Source, folder: Path, config: ExportConfig) -> Network:
    """The model as transformers opens it, on crops that its image processor normalises."""
    import transformers

    prepare = transformers.AutoImageProcessor.from_pretrained(folder)
    is_body = source.config.num_classes is None
    kind = transformers.AutoModel if is_body else transformers.AutoModelForImageClassification
    model = kind.from_pretrained(folder).eval()

    def network(crops: Tensor) -> Tensor:
        off = {"do_resize": False, "do_center_crop": False}
        inputs = prepare(list(crops.numpy()), return_tensors="pt", **off)
        outputs = model(**inputs)
        return outputs.last_hidden_state[:, 0] if is_body else outputs.logits

    return network


def usage(source: Source, config: ExportConfig) -> str:
    """Code that classifies an image with transformers, in the folder of the export."""
    is_body = source.config.num_classes is None
    kind = "AutoModel" if is_body else "AutoModelForImageClassification"
    result = "outputs.last_hidden_state[:, 0]" if is_body else "outputs.logits"
    ending = "" if is_body else "name = model.config.id2label[int(logits[0].argmax())]\n"
    return f"""\
import torch
from PIL import Image
from transformers import AutoImageProcessor, {kind}

processor = AutoImageProcessor.from_pretrained(".")
model = {kind}.from_pretrained(".").eval()

with torch.no_grad():
    outputs = model(**processor(Image.open("image.jpg"), return_tensors="pt"))
{source.output} = {result}
{ending}"""
