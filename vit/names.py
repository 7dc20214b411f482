"""Names of tensors in transformers' models, beside ours."""

from typing import NamedTuple


class Name(NamedTuple):
    """Their module or tensor, which is part number `part` of `parts` of ours; {i} is the block."""

    theirs: str
    ours: str
    part: int = 0
    parts: int = 1


def attention(theirs: str, query: str, key: str, value: str) -> tuple[Name, ...]:
    """Queries, keys and values as three layers."""
    layers = enumerate((query, key, value))
    return tuple(Name(f"{theirs}.{layer}", "blocks.{i}.attn.qkv", i, 3) for i, layer in layers)


EMBEDDINGS = (
    Name("embeddings.cls_token", "cls_token"),
    Name("embeddings.register_tokens", "reg_token"),
    Name("embeddings.position_embeddings", "pos_embed"),
    Name("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    Name("layernorm", "norm"),
    Name("classifier", "head"),
)
LAYER, NEW_LAYER = "encoder.layer.{i}", "layers.{i}"  # the latter in memory since version 5
VIT = (
    *EMBEDDINGS,
    Name("pooler.dense", "pre_logits.fc"),
    *attention(f"{LAYER}.attention.attention", "query", "key", "value"),
    Name(f"{LAYER}.attention.output.dense", "blocks.{i}.attn.proj"),
    Name(f"{LAYER}.intermediate.dense", "blocks.{i}.mlp.fc1"),
    Name(f"{LAYER}.output.dense", "blocks.{i}.mlp.fc2"),
    *attention(f"{NEW_LAYER}.attention", "q_proj", "k_proj", "v_proj"),
    Name(f"{NEW_LAYER}.attention.o_proj", "blocks.{i}.attn.proj"),
    *(Name(f"{NEW_LAYER}.mlp.fc{j}", f"blocks.{{i}}.mlp.fc{j}") for j in (1, 2)),
    *(
        Name(f"{layer}.layernorm_{place}", f"blocks.{{i}}.norm{j}")
        for layer in (LAYER, NEW_LAYER)
        for j, place in ((1, "before"), (2, "after"))
    ),
)
DINOV2 = (
    *EMBEDDINGS,
    *attention(f"{LAYER}.attention.attention", "query", "key", "value"),
    Name(f"{LAYER}.attention.output.dense", "blocks.{i}.attn.proj"),
    *attention(f"{LAYER}.attention", "q_proj", "k_proj", "v_proj"),
    Name(f"{LAYER}.attention.o_proj", "blocks.{i}.attn.proj"),
    *(Name(f"{LAYER}.norm{j}", f"blocks.{{i}}.norm{j}") for j in (1, 2)),
    *(Name(f"{LAYER}.mlp.fc{j}", f"blocks.{{i}}.mlp.fc{j}") for j in (1, 2)),
    *(Name(f"{LAYER}.layer_scale{j}.lambda1", f"blocks.{{i}}.ls{j}.gamma") for j in (1, 2)),
)
