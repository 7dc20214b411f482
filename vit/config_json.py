"""What files say of a model beside its tensors.

transformers and this project's checkpoints: a `config.json`
safetensors in names of timm, DeiT III and DINOv2: metadata, which other programs pass over
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from vit.config import ViTConfig
from vit.dialects import DIALECTS

# hidden_act in a config.json of transformers -> gelu
ACTIVATIONS = {
    "gelu": "exact",
    "gelu_pytorch_tanh": "tanh",
    "gelu_new": "tanh",
    "gelu_fast": "tanh",
}
# settings that tensors do not show, and their kinds or values
HIDDEN = {
    "heads": int,
    "norm_eps": float,
    "gelu": ("exact", "tanh"),
    "positions": ("learned", "sincos2d"),
}
METADATA = "vit"
POOLS = {"token": "token", "mean": "avg", "map": "map"}


def metadata_of(config: ViTConfig) -> dict[str, str]:
    """Metadata of a file: what its tensors do not show, and timm's arguments, both as JSON.

    `VisionTransformer(**json.loads(metadata["timm"]))` of timm makes the model, except that its
    LayerNorms have timm's epsilon.
    """
    hidden = {name: getattr(config, name) for name in HIDDEN}
    return {METADATA: json.dumps(hidden), "timm": json.dumps(timm_arguments(config))}


def of_metadata(metadata: Mapping[str, str], path: Path) -> dict[str, object]:
    """The settings that a file's metadata states; none if this project did not write it."""
    if METADATA not in metadata:
        return {}
    return facts_of(parsed(metadata[METADATA], path), path)


def facts_of(table: Mapping[str, object], path: Path, prefix: str = "") -> dict[str, object]:
    """The settings of HIDDEN that a table states; ValueError if one is impossible."""
    facts = {name: table[prefix + name] for name in HIDDEN if prefix + name in table}
    for name, value in facts.items():
        allowed = HIDDEN[name]
        if not (value in allowed if isinstance(allowed, tuple) else isinstance(value, allowed)):
            raise ValueError(f"{path} states {name} {value!r}, which no model has; write it again")
    return facts


def timm_arguments(config: ViTConfig) -> dict[str, object]:
    """Arguments of timm's `VisionTransformer`; without a head it returns features."""
    return {
        "img_size": config.image_size,
        "patch_size": config.patch_size,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        "mlp_ratio": config.mlp_width / config.width,
        "num_classes": config.num_classes or 0,
        "class_token": config.pool == "token",
        "global_pool": POOLS[config.pool],
        "no_embed_class": not config.class_position,
        "reg_tokens": config.registers,
        "init_values": config.layer_scale,
        "qkv_bias": config.qkv_bias,
        "qk_norm": config.qk_norm,
        "fc_norm": config.fc_norm,
        "act_layer": "gelu" if config.gelu == "exact" else "gelu_tanh",
    }


def transformers_settings(
    config: ViTConfig, dialect: str, labels: Sequence[str] | None = None
) -> dict[str, object]:
    """The contents of the `config.json` with which transformers opens a model.

    `labels` are the names of the classes, all different; None numbers them.
    """
    architecture, prefix = DIALECTS[dialect].architecture, DIALECTS[dialect].prefix
    if config.num_classes is None:
        architecture = architecture.replace("ForImageClassification", "Model")
    labels = labels or [f"LABEL_{i}" for i in range(config.num_classes or 0)]
    classes = {str(i): label for i, label in enumerate(labels)}
    settings: dict[str, object] = {
        "architectures": [architecture],
        "model_type": prefix.removesuffix("."),
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "hidden_act": "gelu" if config.gelu == "exact" else "gelu_pytorch_tanh",
        "layer_norm_eps": config.norm_eps,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": 3,
        "qkv_bias": config.qkv_bias,
        "id2label": classes,
        "label2id": {label: int(i) for i, label in classes.items()},
    }
    if not DIALECTS[dialect].head_of_two:
        return settings | {"intermediate_size": config.mlp_width}
    if config.mlp_width % config.width:
        raise ValueError(
            f"a model of {dialect} cannot have mlp_width {config.mlp_width}, which is not a"
            f" multiple of width ({config.width})"
        )
    registers = {"num_register_tokens": config.registers} if config.registers else {}
    return settings | {"mlp_ratio": config.mlp_width // config.width} | registers


def stated(path: Path) -> dict[str, object]:
    """The settings that a `config.json` states; none if it is neither transformers' nor ours."""
    settings = parsed(path.read_text(), path)
    if "model.gelu" in settings:
        return facts_of(settings, path, "model.")
    kinds = {dialect.prefix.removesuffix(".") for dialect in DIALECTS.values()} - {""}
    if settings.get("model_type") not in kinds:
        return {}
    facts: dict[str, object] = {}
    if "layer_norm_eps" in settings:
        facts["norm_eps"] = float(settings["layer_norm_eps"])
    if "num_attention_heads" in settings:
        facts["heads"] = int(settings["num_attention_heads"])
    activation = settings.get("hidden_act", "gelu")
    if activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ValueError(f"{path}: hidden_act {activation!r} is unknown; known: {known}")
    return facts | {"gelu": ACTIVATIONS[activation]}


def parsed(text: str, path: Path) -> dict[str, object]:
    """A table of settings; ValueError if the text is anything else."""
    try:
        settings = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); download it again") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} is not a table of settings; download it again")
    return settings
