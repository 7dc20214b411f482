"""A folder for timm: model.safetensors, and config.json with the model and its preprocessing.

timm's `local-dir:` source reads both (timm/models/_hub.py). The architecture is the entry of timm
that is nearest, and model_args change it into exactly this model.
"""

from dataclasses import replace
from pathlib import Path

from pipeline.evaluation.model import preparation
from pipeline.export.check import Network
from pipeline.export.config import ExportConfig
from pipeline.export.source import Source
from support.files import write_json
from vit.batch import normalise
from vit.config import ViTConfig
from vit.config_json import timm_arguments
from vit.weights import CONFIG_FILE, MODEL_FILE, save_weights

# width, depth, heads -> name of timm's model, and the patch sizes that it has
NAMES = {
    (192, 12, 3): ("tiny", (16,)),
    (384, 12, 6): ("small", (8, 16, 32)),
    (768, 12, 12): ("base", (8, 16, 32)),
    (1024, 24, 16): ("large", (14, 16, 32)),
    (1280, 32, 16): ("huge", (14,)),
}
OTHER = "vit_base_patch16_224"


def write(source: Source, folder: Path, config: ExportConfig) -> None:
    """Write the two files; ValueError lists the settings of the model that timm does not have."""
    save_weights(folder / MODEL_FILE, source.model, "timm", config.head, source.metadata)
    write_json(folder / CONFIG_FILE, settings(source))


def settings(source: Source) -> dict[str, object]:
    """The contents of config.json."""
    arguments = timm_arguments(source.config)
    num_classes, size = arguments.pop("num_classes"), source.config.image_size
    names = {"label_names": source.classes, "label_descriptions": source.labels}
    return {
        "architecture": architecture(source.config),
        "num_classes": num_classes,
        "num_features": source.config.width,
        "global_pool": arguments["global_pool"],
        "model_args": arguments,
        "pretrained_cfg": {
            **preparation(source.told),
            "num_classes": num_classes,
            "input_size": (3, size, size),
            "fixed_input_size": True,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
        **(names if source.classes else {}),
    }


def architecture(config: ViTConfig) -> str:
    """The entry of timm's registry that model_args change least."""
    shape = (config.width, config.depth, config.heads)
    name, patches = NAMES.get(shape, ("", ()))
    is_there = config.patch_size in patches
    return f"vit_{name}_patch{config.patch_size}_224" if is_there else OTHER


def opened(source: Source, folder: Path, config: ExportConfig) -> Network:
    """The model as timm creates it, on crops that are normalised as its config says."""
    import timm

    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    mean, std = (tuple(model.pretrained_cfg[name]) for name in ("mean", "std"))
    images = replace(source.images, mean=mean, std=std)
    return lambda crops: model(normalise(crops, images))


def usage(source: Source, config: ExportConfig) -> str:
    """Code that classifies an image with timm, in the folder of the export."""
    ending = ""
    if source.classes is not None:
        ending = (
            'wnid = model.pretrained_cfg["label_names"][int(logits[0].argmax())]\n'
            'name = model.pretrained_cfg["label_descriptions"][wnid]\n'
        )
    return f"""\
import timm
import torch
from PIL import Image

model = timm.create_model("local-dir:.", pretrained=True).eval()

cfg = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**cfg, is_training=False)
image = transform(Image.open("image.jpg").convert("RGB"))
with torch.no_grad():
    {source.output} = model(image[None])
{ending}"""
