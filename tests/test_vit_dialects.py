"""Weights of timm and transformers, both ways, and ours through every dialect.

The facts about the libraries are tested with the libraries where they are installed. Where they are
not, the weights and logits that they gave (timm 1.0.31, transformers 5.24) are read from
tests/data/dialects.safetensors: `library/case|tensor`, `library/case|logits` and `images`; its
metadata holds each config.json of transformers.

tests/data/originals.safetensors holds random weights in half precision, images and outputs of the
original code of DeiT III, DINOv2 and ImageNet-21K-P (MIIL), run with torch 2.13: `case|tensor`,
`case|images`, `case|output`. Its metadata names each source by repository, commit and file.
"""

import dataclasses
import itertools
import json
from pathlib import Path

import pytest
import torch
from libraries import library
from random_models import random_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pipeline.settings.presets import PRESETS
from vit.config import ViTConfig
from vit.dialects import DIALECTS, check_says, dialect_of
from vit.model import ViT
from vit.weights import (
    config_of,
    load_weights,
    open_weights,
    read_weights,
    save_safetensors,
    save_weights,
)

STORED = Path(__file__).parent / "data" / "dialects.safetensors"
ORIGINALS = Path(__file__).parent / "data" / "originals.safetensors"
SHAPE = dict(image_size=12, patch_size=4, width=8, depth=2, mlp_width=16, heads=2, num_classes=5)
TIMM = {
    "plain": dict(),
    "layer scale, registers": dict(init_values=0.1, reg_tokens=4, no_embed_class=True),
    "registers with positions": dict(reg_tokens=2),
    "qk norm": dict(qk_norm=True),
    "no qkv bias": dict(qkv_bias=False),
    "fc norm": dict(class_token=False, global_pool="avg"),
    "class token, fc norm": dict(global_pool="avg"),
    "mean of patches": dict(class_token=False, global_pool="avg", fc_norm=False),
    "map": dict(class_token=False, global_pool="map"),
}
# the settings of ours that say the same model
OURS = {
    "plain": dict(),
    "layer scale, registers": dict(layer_scale=1.0, registers=4, class_position=False),
    "registers with positions": dict(registers=2),
    "qk norm": dict(qk_norm=True),
    "no qkv bias": dict(qkv_bias=False),
    "fc norm": dict(pool="mean", fc_norm=True),
    "class token, fc norm": dict(pool="mean", fc_norm=True, registers=1),
    "mean of patches": dict(pool="mean"),
    "map": dict(pool="map"),
}
TRANSFORMERS = {
    "vit": ("ViT", dict()),
    "vit, tanh, no qkv bias": ("ViT", dict(hidden_act="gelu_pytorch_tanh", qkv_bias=False)),
    "dinov2": ("Dinov2", dict()),
    "dinov2 with registers": ("Dinov2WithRegisters", dict(num_register_tokens=3)),
}
OURS_OF_TRANSFORMERS = {
    "vit": dict(norm_eps=1e-12),
    "vit, tanh, no qkv bias": dict(norm_eps=1e-12, gelu="tanh", qkv_bias=False),
    "dinov2": dict(layer_scale=1.0),
    "dinov2 with registers": dict(layer_scale=1.0, registers=3, class_position=False),
}
CASES = [*(("timm", case) for case in TIMM), *(("transformers", case) for case in TRANSFORMERS)]


pytestmark = pytest.mark.usefixtures("one_thread")


def timm_model(case, **more):
    """A model of timm's."""
    VisionTransformer = library("timm.models.vision_transformer").VisionTransformer
    shape = dict(img_size=12, patch_size=4, embed_dim=8, depth=2, num_heads=2, mlp_ratio=2)
    return VisionTransformer(num_classes=5, **{**shape, **TIMM[case], **more}).eval()


def transformers_model(case):
    """A model of transformers'; a head on DINOv2 that reads the class token only."""
    transformers = library("transformers")
    kind, settings = TRANSFORMERS[case]
    shape = dict(image_size=12, patch_size=4, hidden_size=8, num_hidden_layers=2)
    shape |= dict(num_attention_heads=2, num_labels=5)
    shape |= dict(intermediate_size=16) if kind == "ViT" else dict(mlp_ratio=2)
    config = getattr(transformers, f"{kind}Config")(**shape, **settings)
    return getattr(transformers, f"{kind}ForImageClassification")(config).eval()


def logits_of(model, images):
    with torch.no_grad():
        out = model(images)
    return getattr(out, "logits", out)


def randomise(model):
    """Give all weights values that half precision holds."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2).copy_(parameter.half())
        if hasattr(model, "classifier") and model.classifier.in_features == 16:
            model.classifier.weight[:, 8:] = 0
    return model


def written_by(name, case, folder):
    """Write a library's model into a folder as the library does; return the model."""
    if name == "timm":
        model = randomise(timm_model(case))
        save_file(model.state_dict(), folder / "model.safetensors")
    else:
        model = randomise(transformers_model(case))
        model.save_pretrained(folder)
    return model


def make(seed=1, **settings):
    """A model of ours, none of whose weights is zero."""
    return random_model(ViTConfig(**{**SHAPE, **settings}), seed)


def expected_config(name, case):
    settings = (OURS if name == "timm" else OURS_OF_TRANSFORMERS)[case]
    return ViTConfig(**{**SHAPE, **settings})


def check(folder, config, images, expected):
    """The folder's weights give a model of this config, with these logits."""
    found = config_of(folder)
    assert dataclasses.replace(found, heads=2) == config
    model = ViT(config).eval()
    load_weights(model, folder)
    torch.testing.assert_close(logits_of(model, images), expected, atol=2e-6, rtol=1e-5)


# ---------------------------------------------------------------- of the libraries


@pytest.mark.parametrize("name, case", CASES)
def test_weights_of_a_library_give_its_logits(name, case, tmp_path):
    model = written_by(name, case, tmp_path)
    images = torch.randn(3, 3, 12, 12)
    check(tmp_path, expected_config(name, case), images, logits_of(model, images))


@pytest.mark.parametrize("name, case", CASES)
def test_stored_weights_of_a_library_give_its_logits(name, case, tmp_path):
    start = f"{name}/{case}|"
    with safe_open(STORED, "pt") as file:
        keys = [key for key in file.keys() if key.startswith(start)]  # noqa: SIM118
        tensors = {key.removeprefix(start): file.get_tensor(key).float() for key in keys}
        images = file.get_tensor("images")
        settings = file.metadata().get(f"{name}/{case}")
    if settings:
        (tmp_path / "config.json").write_text(settings)
    logits = tensors.pop("logits")
    save_file(tensors, tmp_path / "model.safetensors")
    check(tmp_path, expected_config(name, case), images, logits)


@pytest.mark.parametrize("case", [case for case in TIMM if case != "class token, fc norm"])
def test_timm_loads_ours_and_gives_our_logits(case, tmp_path):
    theirs, ours = timm_model(case), make(**OURS[case])
    save_weights(tmp_path / "model.safetensors", ours, "timm")
    theirs.load_state_dict(load_file(tmp_path / "model.safetensors"))
    images = torch.randn(3, 3, 12, 12)
    expected = logits_of(ours, images)
    torch.testing.assert_close(logits_of(theirs, images), expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("case", TRANSFORMERS)
def test_transformers_opens_ours_and_gives_our_logits(case, tmp_path):
    kind = getattr(library("transformers"), f"{TRANSFORMERS[case][0]}ForImageClassification")
    ours = make(**OURS_OF_TRANSFORMERS[case])
    dialect = "transformers" + "-dinov2" * ("dinov2" in case) + "-registers" * ("regis" in case)
    save_weights(tmp_path, ours, dialect)
    theirs, report = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    images = torch.randn(3, 3, 12, 12)
    expected = logits_of(ours, images)
    torch.testing.assert_close(logits_of(theirs.eval(), images), expected, atol=2e-6, rtol=1e-5)


ORIGINAL = {
    "deit3": ("deit3", dict(layer_scale=1.0, class_position=False)),
    "dinov2": ("dinov2", dict(layer_scale=1.0)),
    "dinov2-reg": ("dinov2", dict(layer_scale=1.0, registers=3, class_position=False)),
    "miil": ("miil", dict(qkv_bias=False)),
}


@pytest.mark.parametrize("case", ORIGINAL)
def test_weights_of_the_original_code_give_its_outputs(case, tmp_path):
    start, (dialect, settings) = f"{case}|", ORIGINAL[case]
    stored = {k.removeprefix(start): t for k, t in load_file(ORIGINALS).items() if start in k}
    tensors = {k: t.float() for k, t in stored.items()}
    images, output = tensors.pop("images"), tensors.pop("output")
    torch.save({"model": tensors}, tmp_path / "a.pth")  # as published
    weights = open_weights(tmp_path / "a.pth")
    assert weights.dialect == dialect
    headless = case.startswith("dinov2")
    expected = ViTConfig(**{**SHAPE, **settings, "num_classes": None if headless else 5})
    assert dataclasses.replace(weights.config, heads=2) == expected
    model = ViT(dataclasses.replace(expected, num_classes=5)).eval()
    load_weights(model, tmp_path / "a.pth", head="drop" if headless else "keep")
    with torch.no_grad():
        ours = model.features(images) if headless else model(images)
    torch.testing.assert_close(ours, output, atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------- every preset, both ways


def small(config):
    """A preset's model with its own options, cut to 2 blocks of 3 heads and 3 x 3 patches."""
    return dataclasses.replace(
        config,
        width=24,
        mlp_width=round(24 * config.mlp_width / config.width),
        depth=2,
        heads=3,
        image_size=3 * config.patch_size,
        num_classes=5,
    )


# what only training uses, and what the factors of LayerScale start from
TRAINING = dict(
    dropout=0.0, drop_path=0.0, drop_path_rates="linear", head_bias=0.0, checkpoint_blocks=False
)


def trained(model):
    """A model's config without what only training uses."""
    scale = {} if model.layer_scale is None else {"layer_scale": 1.0}
    return dataclasses.replace(model, **TRAINING, **scale)


# presets that differ in what they train, not in the model, are one case, named by the first
PRESET_MODELS = {}
for preset in PRESETS.values():
    PRESET_MODELS.setdefault(small(trained(preset.config.model)), preset.config.name)


@pytest.fixture(params=PRESET_MODELS, ids=PRESET_MODELS.values())
def preset_model(request):
    """The small model of a preset."""
    return make(**dataclasses.asdict(request.param)).eval()


def comes_back(path, model, head="keep"):
    """Whether the file says the model, and gives its features or logits."""
    changes = dict(num_classes=None, pre_logits=False) if head == "drop" else {}
    assert config_of(path) == dataclasses.replace(model.config, **changes)
    other = ViT(
        dataclasses.replace(model.config, pre_logits=model.config.pre_logits and not changes)
    )
    load_weights(other, path, head=head)
    images = torch.randn(2, 3, model.config.image_size, model.config.image_size)
    if head == "keep":
        return torch.equal(model(images), other.eval()(images))
    return torch.equal(body(model)(images), other.eval().features(images))


def body(model):
    """The features of a model without its head and the tanh layer before it."""
    copied = ViT(dataclasses.replace(model.config, pre_logits=False)).eval()
    copied.load_state_dict(
        {k: t for k, t in model.state_dict().items() if not k.startswith("pre_logits.")}
    )
    return copied.features


def test_every_preset_goes_to_timm_and_comes_back(preset_model, tmp_path):
    file, head = tmp_path / "model.safetensors", "keep"
    if preset_model.config.pre_logits:
        with pytest.raises(ValueError, match=r"timm cannot have pre_logits=True .*--head drop"):
            save_weights(file, preset_model, "timm")
        head = "drop"
    save_weights(file, preset_model, "timm", head)
    assert comes_back(file, preset_model, head)
    with safe_open(file, "pt") as opened:
        arguments = json.loads(opened.metadata()["timm"])
    theirs = library("timm.models.vision_transformer").VisionTransformer(**arguments).eval()
    theirs.load_state_dict(load_file(file))
    side = preset_model.config.image_size
    images = torch.randn(2, 3, side, side)
    ours = preset_model if head == "keep" else body(preset_model)
    with torch.no_grad():
        torch.testing.assert_close(theirs(images), ours(images), atol=2e-6, rtol=1e-5)


def test_every_preset_goes_to_transformers_and_comes_back_or_is_refused(preset_model, tmp_path):
    config = preset_model.config
    head = "drop" if config.pre_logits else "keep"
    # what no ViT of transformers has, with or without a head
    differs = {"pool": config.pool != "token", "layer_scale": config.layer_scale is not None}
    refused = [name for name, holds in differs.items() if holds]
    for name in refused or ["pre_logits"] * config.pre_logits:
        cannot = f"transformers cannot have .*{name}={getattr(config, name)}"
        with pytest.raises(ValueError, match=cannot):
            save_weights(tmp_path, preset_model, "transformers")
    if refused:
        return
    save_weights(tmp_path, preset_model, "transformers", head)
    assert comes_back(tmp_path, preset_model, head)
    transformers = library("transformers")
    images = torch.randn(2, 3, config.image_size, config.image_size)
    with torch.no_grad():
        if head == "keep":
            opener = transformers.AutoModelForImageClassification
            expected, theirs = preset_model(images), opener.from_pretrained(tmp_path).eval()
            got = theirs(images).logits
        else:
            expected = body(preset_model)(images)
            theirs = transformers.AutoModel.from_pretrained(tmp_path).eval()
            got = theirs(images).last_hidden_state[:, 0]
    torch.testing.assert_close(got, expected, atol=2e-6, rtol=1e-5)


# ---------------------------------------------------------------- ours, through each dialect

MODELS = [
    dict(),
    dict(class_position=False),
    dict(pre_logits=True),
    dict(qkv_bias=False),
    dict(qk_norm=True),
    dict(registers=2),
    dict(layer_scale=0.1),
    dict(layer_scale=0.1, class_position=False),
    dict(layer_scale=0.1, registers=3, class_position=False),
    dict(pool="mean"),
    dict(pool="mean", positions="sincos2d"),
    dict(pool="mean", registers=1, fc_norm=True),
    dict(pool="map"),
    dict(pool="map", fc_norm=True),
]
# numbers of MODELS that a dialect can say
SAID = {
    "timm": {0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13},
    "deit3": {7},
    "dinov2": {6, 7, 8},
    "transformers": {0, 1, 3},
    "transformers-dinov2": {6, 7},
    "transformers-dinov2-registers": {8},
    "miil": {3},
    "npz-vit": {0, 1, 2, 9, 10, 12},
    "npz-big_vision": {0, 1, 2, 9, 10, 12},
}


def round_trip(model, dialect, folder):
    """The model after it was written in a dialect and read again."""
    file = "model.npz" if dialect.startswith("npz") else "model.safetensors"
    path = folder if DIALECTS[dialect].architecture else folder / file
    save_weights(path, model, dialect)
    other = ViT(model.config).eval()
    load_weights(other, path)
    return other


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("number", range(len(MODELS)))
def test_a_model_comes_back_bit_for_bit_or_is_refused(dialect, number, tmp_path):
    model = make(**MODELS[number])
    if number not in SAID[dialect]:
        with pytest.raises(ValueError, match=f"a model of {dialect} cannot have"):
            save_weights(tmp_path / "x", model, dialect)
        assert not list(tmp_path.iterdir())
        return
    if dialect == "npz-big_vision" and model.config.num_prefix and model.config.class_position:
        with torch.no_grad():  # this layout has no slot for the class token's position
            model.pos_embed[:, 0] = 0
    other = round_trip(model, dialect, tmp_path)
    state = model.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in other.state_dict().items())
    images = torch.randn(2, 3, 12, 12)
    assert torch.equal(model(images), other(images))


@pytest.mark.parametrize("size, dialect", [*itertools.product(("Ti/16", "S/32"), DIALECTS)])
def test_published_sizes_come_back_bit_for_bit(size, dialect, tmp_path):
    settings = MODELS[min(SAID[dialect])]
    config = ViTConfig.named(size, image_size=64, num_classes=3, depth=2, **settings)
    model = ViT(config).eval()
    if dialect == "npz-big_vision":
        with torch.no_grad():
            model.pos_embed[:, 0] = 0
    other = round_trip(model, dialect, tmp_path)
    state = model.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in other.state_dict().items())


def test_the_names_of_deit3_and_dinov2_are_their_codes(tmp_path):
    save_weights(tmp_path / "a.safetensors", make(**MODELS[7]), "deit3")
    names = load_file(tmp_path / "a.safetensors")
    assert names["blocks.1.gamma_2"].shape == (8,) and names["pos_embed"].shape == (1, 9, 8)
    assert dialect_of(names) == "deit3"
    save_weights(tmp_path / "b.safetensors", make(**MODELS[8]), "dinov2")
    names = load_file(tmp_path / "b.safetensors")
    assert names["register_tokens"].shape == (1, 3, 8) and names["pos_embed"].shape == (1, 10, 8)
    assert names["mask_token"].shape == (1, 8) and dialect_of(names) == "dinov2"


def test_names_of_transformers_in_memory_are_read_too(tmp_path):
    model = make()
    save_weights(tmp_path, model, "transformers")
    state = load_file(tmp_path / "model.safetensors")
    renamed = {}
    for key, tensor in state.items():
        for old, new in (
            ("encoder.layer", "layers"),
            ("attention.attention.query", "attention.q_proj"),
            ("attention.attention.key", "attention.k_proj"),
            ("attention.attention.value", "attention.v_proj"),
            ("attention.output.dense", "attention.o_proj"),
            ("intermediate.dense", "mlp.fc1"),
            ("output.dense", "mlp.fc2"),
        ):
            key = key.replace(old, new)
        renamed[key] = tensor
    torch.save(renamed, tmp_path / "a.pth")
    tensors, expected = read_weights(tmp_path / "a.pth"), model.state_dict()
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in tensors.items())


# ---------------------------------------------------------------- refusals and warnings


def test_the_tanh_layer_is_refused_to_timm_with_the_reason():
    with pytest.raises(ValueError, match=r"pre_logits=True \(it has no tanh layer .* folded"):
        check_says(make(pre_logits=True).config, "timm")
    with pytest.raises(ValueError, match="unknown dialect 'keras'; known: timm"):
        check_says(make().config, "keras")


def test_all_that_a_dialect_cannot_say_is_listed():
    config = make(registers=2, layer_scale=0.1, qk_norm=True, pool="mean").config
    with pytest.raises(ValueError) as error:
        check_says(config, "transformers")
    for words in ("pool=mean", "registers=2", "layer_scale=0.1", "qk_norm=True"):
        assert words in str(error.value)


def test_a_model_that_lacks_what_the_weights_need_is_told_the_settings(tmp_path):
    saved = make(registers=3, layer_scale=0.1, qkv_bias=False, class_position=False)
    save_safetensors(tmp_path / "a.safetensors", saved.state_dict())
    with pytest.raises(ValueError) as error:
        load_weights(make(), tmp_path / "a.safetensors")
    save_weights(tmp_path / "b.safetensors", make(**MODELS[7]), "deit3")
    with pytest.raises(ValueError, match=r"The file needs layer_scale=1\.0$"):
        load_weights(make(), tmp_path / "b.safetensors")
    needed = "registers=3, class_position=False, layer_scale=1.0, qkv_bias=False"
    assert f"The file needs {needed}" in str(error.value)


def test_a_position_slot_is_filled_or_folded_without_changing_the_logits(tmp_path):
    images = torch.randn(2, 3, 12, 12)
    cases = itertools.product(itertools.permutations((True, False)), (0, 3))
    for (has, wants), registers in cases:
        model = make(class_position=has, registers=registers)
        other = make(2, class_position=wants, registers=registers)
        save_safetensors(tmp_path / "a.safetensors", model.state_dict())
        load_weights(other, tmp_path / "a.safetensors")
        assert torch.equal(model(images), other(images))


def test_a_head_of_dinov2_that_reads_the_patches_is_refused_and_can_be_dropped(tmp_path):
    save_weights(tmp_path, make(layer_scale=0.1), "transformers-dinov2")
    state = load_file(tmp_path / "model.safetensors")
    save_file(state | {"classifier.weight": torch.ones(5, 16)}, tmp_path / "model.safetensors")
    model = make(2, layer_scale=0.1)
    with pytest.raises(ValueError, match=r"head.weight is \(5, 16\) in the file .* head='drop'"):
        load_weights(model, tmp_path)
    load_weights(model, tmp_path, head="drop")


FILES = {dialect: "model.safetensors" for dialect in ("timm", "deit3", "dinov2", "miil")}


@pytest.mark.parametrize("dialect", FILES)
def test_what_tensors_do_not_show_is_stated_beside_them(dialect, tmp_path, caplog):
    settings = dict(MODELS[min(SAID[dialect])], gelu="tanh", norm_eps=1e-12, heads=4)
    model = make(**settings)
    save_weights(tmp_path / "model.safetensors", model, dialect)
    assert f"{dialect} computes with gelu=exact, this model with tanh" in caplog.text
    assert f"{dialect} computes with norm_eps=1e-06, this model with 1e-12" in caplog.text
    caplog.clear()
    found = config_of(tmp_path / "model.safetensors")
    assert (found.gelu, found.norm_eps, found.heads) == ("tanh", 1e-12, 4)
    load_weights(make(2, **settings), tmp_path / "model.safetensors")
    assert not caplog.records
    load_weights(make(2, **settings | dict(gelu="exact", norm_eps=1e-6)), tmp_path)
    assert "states gelu=tanh, the model has exact" in caplog.text
    assert "states norm_eps=1e-12, the model has 1e-06" in caplog.text
    with pytest.raises(ValueError, match="has 4 attention heads, the model has 2; set heads"):
        load_weights(make(2, **settings | dict(heads=2)), tmp_path)


def test_fixed_positions_are_stated_beside_the_tensors(tmp_path):
    model = make(pool="mean", positions="sincos2d")
    save_weights(tmp_path / "a.safetensors", model)
    assert config_of(tmp_path / "a.safetensors").positions == "sincos2d"


@pytest.mark.parametrize(
    "stated", ['{"gelu": "relu"}', '{"norm_eps": "small"}', '{"heads": [2]}', "{", "[1]"]
)
def test_metadata_that_no_model_has_is_refused(stated, tmp_path):
    save_safetensors(tmp_path / "a.safetensors", make().state_dict(), {"vit": stated})
    with pytest.raises(ValueError, match=r"a\.safetensors .*(no model has|not JSON|not a table)"):
        config_of(tmp_path / "a.safetensors")


def test_a_checkpoint_of_a_run_states_its_gelu_and_epsilon(tmp_path, caplog):
    config = PRESETS["in21k-s16-30ep"].config.replace({"model.norm_eps": 1e-5})
    save_safetensors(tmp_path / "model.safetensors", make().state_dict())
    (tmp_path / "config.json").write_text(json.dumps(config.flat() | {"model.heads": 2}))
    found = config_of(tmp_path)
    assert (found.gelu, found.norm_eps, found.heads) == ("tanh", 1e-5, 2)
    load_weights(make(), tmp_path)
    assert "states gelu=tanh, the model has exact" in caplog.text
    assert "states norm_eps=1e-05, the model has 1e-06" in caplog.text


def test_another_gelu_or_epsilon_than_the_dialects_is_warned_of(tmp_path, caplog):
    save_safetensors(tmp_path / "a.safetensors", make().state_dict())
    load_weights(make(gelu="tanh"), tmp_path / "a.safetensors")
    message = "a.safetensors states no gelu; timm has gelu=exact, the model has tanh"
    assert message in caplog.text
    caplog.clear()
    save_weights(tmp_path / "a.npz", make(gelu="tanh"), "npz-vit")
    assert not caplog.records
    load_weights(make(), tmp_path / "a.npz")
    assert "a.npz states no gelu; npz-vit has gelu=tanh, the model has exact" in caplog.text
    assert config_of(tmp_path / "a.npz").gelu == "tanh"
    save_weights(tmp_path / "hub", make(norm_eps=1e-9), "transformers")
    load_weights(make(), tmp_path / "hub")
    assert "states norm_eps=1e-09, the model has 1e-06" in caplog.text
    (tmp_path / "hub" / "config.json").unlink()
    assert config_of(tmp_path / "hub").norm_eps == 1e-12
    caplog.clear()
    load_weights(make(gelu="tanh"), tmp_path / "a.npz")
    assert not caplog.records
    save_weights(tmp_path / "b.npz", make(), "npz-vit")
    assert "npz-vit computes with gelu=tanh, this model with exact" in caplog.text


def test_another_activation_and_other_heads_of_transformers_are_refused(tmp_path):
    save_weights(tmp_path, make(), "transformers")
    settings = json.loads((tmp_path / "config.json").read_text())
    for change, words in (
        ({"hidden_act": "relu"}, "hidden_act 'relu' is unknown; known: gelu"),
        ({"num_attention_heads": 4}, "has 4 attention heads, the model has 2"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(settings | change))
        with pytest.raises(ValueError, match=words):
            load_weights(make(), tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        load_weights(make(), tmp_path)


@pytest.mark.parametrize("dialect, number", [("transformers", 0), ("transformers-dinov2", 6)])
def test_a_model_of_transformers_without_a_head_loads_with_the_head_dropped(
    dialect, number, tmp_path
):
    model, other = make(**MODELS[number]), make(2, **MODELS[number])
    save_weights(tmp_path, model, dialect)
    state = load_file(tmp_path / "model.safetensors")
    prefix = DIALECTS[dialect].prefix
    state = {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}
    if dialect == "transformers":
        state |= {"pooler.dense.weight": torch.ones(8, 8), "pooler.dense.bias": torch.ones(8)}
    save_file(state, tmp_path / "model.safetensors")
    assert config_of(tmp_path).num_classes is None
    with pytest.raises(ValueError, match="head.weight .* is missing"):
        load_weights(other, tmp_path)
    load_weights(other, tmp_path, head="drop")
    images = torch.randn(2, 3, 12, 12)
    assert torch.equal(model.features(images), other.features(images))


@pytest.mark.parametrize("name", ["gelu_new", "gelu_fast", "gelu_pytorch_tanh"])
def test_all_names_of_the_tanh_form_are_known(name, tmp_path):
    save_weights(tmp_path, make(), "transformers")
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"hidden_act": name}))
    assert config_of(tmp_path).gelu == "tanh"


def test_a_folder_with_the_pickled_file_of_older_versions_loads(tmp_path):
    model, other = make(norm_eps=1e-12), make(2, norm_eps=1e-12)
    save_weights(tmp_path, model, "transformers")
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    load_weights(other, tmp_path)
    images = torch.randn(2, 3, 12, 12)
    assert torch.equal(model(images), other(images))


def test_tensors_of_impossible_shapes_are_refused_by_name(tmp_path):
    save_weights(tmp_path, make(), "transformers")
    state, file = load_file(tmp_path / "model.safetensors"), tmp_path / "model.safetensors"
    key = "vit.encoder.layer.0.attention.attention.key.weight"
    for change, words in (
        ({"vit.embeddings.cls_token": torch.zeros(8)}, r"cls_token is \(8,\), but has 3 axes"),
        ({"vit.embeddings.position_embeddings": torch.zeros(10)}, "pos_embed is"),
        ({"classifier.weight": torch.zeros(5)}, "head.weight is"),
        ({key: torch.zeros(8, 3)}, "impossible shape"),
        ({"vit.extra.weight": torch.zeros(8)}, r"vit.extra.weight \(8,\) is not in the model"),
    ):
        save_file(state | change, file)
        with pytest.raises(ValueError, match=words):
            load_weights(make(norm_eps=1e-12), tmp_path)
    save_file({k: t for k, t in state.items() if k != key}, file)
    with pytest.raises(ValueError, match=r"blocks.0.attn.qkv.weight is \(16, 8\) in the file"):
        load_weights(make(norm_eps=1e-12), tmp_path)


def test_weights_that_are_not_a_vits_are_refused(tmp_path):
    save_file({"conv.weight": torch.zeros(3)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="a.safetensors: these are not the weights of a ViT"):
        config_of(tmp_path / "a.safetensors")
