"""The `config.json` in which transformers states the settings of a model beside its weights."""

import json
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


def transformers_settings(config: ViTConfig, dialect: str) -> dict[str, object]:
    """The contents of the `config.json` with which transformers opens a model."""
    architecture, prefix = DIALECTS[dialect].architecture, DIALECTS[dialect].prefix
    classes = {str(i): f"LABEL_{i}" for i in range(config.num_classes or 0)}
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
    """The settings that a `config.json` of transformers states; none if it is another program's."""
    try:
        settings = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); download it again") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} is not a table of settings; download it again")
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
