"""The model against published counts and an independent forward pass in NumPy float64."""

import math

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vit.config import SIZES, LossConfig, ViTConfig
from vit.dropout import image_keys
from vit.loss import make_loss, make_targets
from vit.model import ViT

pytestmark = pytest.mark.usefixtures("one_thread")


TINY = dict(image_size=12, patch_size=4, width=24, depth=2, mlp_width=40, heads=3, num_classes=7)


def trained(config: ViTConfig) -> ViT:
    """A model none of whose weights is zero."""
    torch.manual_seed(0)
    model = ViT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def gelu(x, kind):
    if kind == "exact":
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    return x * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def layer_norm(x, state, name, eps=1e-6):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def dense(x, state, name):
    return x @ state[f"{name}.weight"].T + state.get(f"{name}.bias", 0)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attend(q, k, v, heads, norm=lambda x, name: x):
    """(N, D), (M, D), (M, D) -> (N, D), head by head."""
    out = []
    for part in np.split(np.arange(q.shape[-1]), heads):
        one, other = norm(q[:, part], "q_norm"), norm(k[:, part], "k_norm")
        weights = softmax(one @ other.T / math.sqrt(len(part)))
        out.append(weights @ v[:, part])
    return np.concatenate(out, -1)


def reference_forward(state, image, c):
    """Logits of one image (3, S, S), all loops and float64."""
    tokens = []
    for row in range(c.grid):
        for column in range(c.grid):
            p = c.patch_size
            patch = image[:, row * p : row * p + p, column * p : column * p + p]
            kernel = state["patch_embed.proj.weight"]
            tokens.append((kernel * patch).sum((1, 2, 3)) + state["patch_embed.proj.bias"])
    x = np.stack(tokens)
    if not c.class_position:
        x = x + state["pos_embed"][0]
    others = [state[name][0] for name in ("cls_token", "reg_token") if name in state]
    x = np.concatenate([*others, x])
    if c.class_position:
        x = x + state["pos_embed"][0]
    for i in range(c.depth):
        name = f"blocks.{i}"

        def norm(x, layer, name=name):
            if c.qk_norm or layer in ("norm1", "norm2"):
                place = name if layer.startswith("norm") else f"{name}.attn"
                x = layer_norm(x, state, f"{place}.{layer}", c.norm_eps)
            return x

        qkv = dense(norm(x, "norm1"), state, f"{name}.attn.qkv")
        h = dense(attend(*np.split(qkv, 3, -1), c.heads, norm), state, f"{name}.attn.proj")
        x = x + h * state.get(f"{name}.ls1.gamma", 1)
        h = gelu(dense(norm(x, "norm2"), state, f"{name}.mlp.fc1"), c.gelu)
        x = x + dense(h, state, f"{name}.mlp.fc2") * state.get(f"{name}.ls2.gamma", 1)
    x = x if c.fc_norm else layer_norm(x, state, "norm", c.norm_eps)
    if c.pool == "token":
        x = x[0]
    elif c.pool == "mean":
        x = x[c.registers :].mean(0)
    else:
        q = dense(state["attn_pool.latent"][0], state, "attn_pool.q")
        k, v = np.split(dense(x, state, "attn_pool.kv"), 2, -1)
        x = dense(attend(q, k, v, c.heads), state, "attn_pool.proj")
        h = gelu(dense(layer_norm(x, state, "attn_pool.norm"), state, "attn_pool.mlp.fc1"), c.gelu)
        x = (x + dense(h, state, "attn_pool.mlp.fc2"))[0]
    x = layer_norm(x, state, "fc_norm", c.norm_eps) if c.fc_norm else x
    if c.pre_logits:
        x = np.tanh(dense(x, state, "pre_logits.fc"))
    return dense(x, state, "head")


def as_numpy(model):
    return {name: t.double().numpy() for name, t in model.state_dict().items()}


VARIANTS = [
    dict(pool="token"),
    dict(pool="token", pre_logits=True, gelu="tanh"),
    dict(pool="mean"),
    dict(pool="mean", pre_logits=True, positions="sincos2d"),
    dict(pool="map", gelu="tanh"),
    dict(pool="token", positions="sincos2d"),
    dict(layer_scale=0.1, registers=2, class_position=False, qkv_bias=False),
    dict(pool="mean", registers=2, fc_norm=True, qk_norm=True, norm_eps=1e-2),
    dict(pool="map", registers=1, fc_norm=True, positions="sincos2d"),
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_logits_equal_an_independent_float64_forward(variant):
    config = ViTConfig(**TINY, **variant)
    model = trained(config)
    images = torch.randn(3, 3, 12, 12)
    expected = np.stack([reference_forward(as_numpy(model), i, config) for i in images.numpy()])
    got = model(images).detach().numpy()
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("variant", VARIANTS[:3] + VARIANTS[4:5] + VARIANTS[6:8], ids=str)
def test_gradients_equal_finite_differences(variant):
    config = ViTConfig(**TINY, **variant)
    model = trained(config).double()
    image = torch.randn(1, 3, 12, 12, dtype=torch.float64)
    weights = torch.randn(7, dtype=torch.float64)
    (model(image)[0] @ weights).backward()
    state = as_numpy(model)
    rng = np.random.default_rng(0)
    for name, parameter in model.named_parameters():
        place = tuple(int(rng.integers(n)) for n in parameter.shape)
        value, slopes = state[name][place], []
        for step in (1e-5, -1e-5):
            state[name][place] = value + step
            slopes.append(reference_forward(state, image[0].numpy(), config) @ weights.numpy())
        state[name][place] = value
        expected = (slopes[0] - slopes[1]) / 2e-5
        got = parameter.grad[place].item()
        assert got == pytest.approx(expected, rel=1e-6, abs=1e-7), name


@pytest.mark.parametrize(
    "name, count", [("B/16", 86_567_656), ("S/16", 22_050_664), ("Ti/16", 5_717_416)]
)
def test_parameter_counts_are_the_published_ones(name, count):
    assert num_parameters(ViTConfig.named(name, num_classes=1000)) == count


FIXED = dict(pool="mean", positions="sincos2d")


def num_parameters(config):
    with torch.device("meta"):
        return sum(p.numel() for p in ViT(config).parameters())


@pytest.mark.parametrize(
    "name, settings, millions",
    [
        ("Ti/16", dict(num_classes=21_843), 9.740),
        ("S/32", dict(num_classes=1000), 22.879),
        ("S/8", dict(num_classes=1000), 22.055),
        ("S/16", dict(num_classes=21_843, pre_logits=True), 30.223),
        ("S/16", dict(num_classes=21_843, pool="mean"), 30.074),
        (
            "S/16",
            dict(num_classes=1000, pre_logits=True, pool="mean", positions="sincos2d"),
            22.122,
        ),
        ("B/16", dict(num_classes=1000, image_size=384), 86.859),
        ("B/32", dict(num_classes=21_843), 104.252),
        ("L/16", dict(num_classes=1000), 304.327),
        ("L/32", dict(num_classes=21_843, pre_logits=True), 328.949),
        ("H/14", dict(num_classes=1000), 632.046),
        ("g/14", dict(num_classes=1000), 1012.6),
    ],
)
def test_millions_of_parameters_are_the_published_ones(name, settings, millions):
    counted = num_parameters(ViTConfig.named(name, **settings)) / 1e6
    assert round(counted, 1 if millions == 1012.6 else 3) == millions


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_the_config_counts_the_parameters_and_operations_of_the_model(variant):
    config = ViTConfig(**TINY, **variant)
    assert config.num_parameters == num_parameters(config)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        ViT(config)(torch.zeros(2, 3, 12, 12))
    once = 2 * config.width**2 if config.pool == "map" else 0
    assert counter.get_total_flops() == 2 * config.forward_flops - once


def test_layer_scale_and_registers_start_at_their_references_values():
    torch.manual_seed(0)
    model = ViT(ViTConfig(**{**TINY, "width": 384}, layer_scale=1e-5, registers=4, qk_norm=True))
    assert all((block.ls1.gamma == 1e-5).all() for block in model.blocks)
    assert 0.9e-6 < model.reg_token.std().item() < 1.1e-6
    assert (model.blocks[0].attn.q_norm.weight == 1).all()


def test_b16_has_152_tensors_under_timm_names():
    with torch.device("meta"):
        state = ViT(ViTConfig.named("B/16", num_classes=1000)).state_dict()
    assert len(state) == 152
    assert state["blocks.11.attn.qkv.weight"].shape == (2304, 768)
    assert state["cls_token"].shape == (1, 1, 768) and state["pos_embed"].shape == (1, 197, 768)


@pytest.mark.parametrize(
    "name, size, gmac",
    [
        ("Ti/16", 224, 1.25),
        ("S/16", 224, 4.60),
        ("B/16", 224, 17.56),
        ("B/16", 384, 55.48),
        ("L/16", 224, 61.55),
        ("S/32", 224, 1.14),
    ],
)
def test_published_flops_are_twice_the_published_multiply_adds(name, size, gmac):
    config = ViTConfig.named(name, image_size=size, num_classes=1000)
    assert config.published_flops / 2e9 == pytest.approx(gmac, abs=0.006)


@pytest.mark.parametrize("pool", ["token", "mean", "map"])
def test_forward_flops_equal_what_pytorch_counts(pool):
    config = ViTConfig(**TINY, pool=pool, pre_logits=True)
    model = ViT(config)
    # the CPU's fused attention is not counted, its plain one is
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, 3, 12, 12))
    # the query of the attention pool is projected once for the whole batch
    once = 2 * config.width**2 if pool == "map" else 0
    assert counter.get_total_flops() == 2 * config.forward_flops - once


@pytest.mark.parametrize(
    "loss, bias, classes, expected",
    [
        ("sigmoid", -10.0, 21_843, 10.9916),
        ("sigmoid", -6.9, 1000, 7.907),
        ("softmax", -10.0, 21_843, math.log(21_843)),
        ("softmax", 0.0, 1000, math.log(1000)),
    ],
)
def test_first_loss_of_a_fresh_model(loss, bias, classes, expected):
    config = ViTConfig(**{**TINY, "num_classes": classes}, head_bias=bias)
    logits = ViT(config)(torch.randn(2, 3, 12, 12))
    targets = make_targets(torch.tensor([[5], [classes - 1]]), classes)
    losses = make_loss(LossConfig(name=loss))(logits, targets)
    assert losses.tolist() == pytest.approx([expected] * 2, abs=1e-4 if loss == "softmax" else 5e-4)


def test_first_sigmoid_loss_keeps_the_digits_that_float32_has():
    config = ViTConfig(**{**TINY, "num_classes": 21_843}, head_bias=-10.0)
    loss = make_loss(LossConfig(name="sigmoid"))
    value = loss(ViT(config)(torch.randn(1, 3, 12, 12)), make_targets(torch.tensor([[3]]), 21_843))
    exact = 21_842 * math.log1p(math.exp(-10)) + math.log1p(math.exp(10))
    assert value.item() == pytest.approx(exact, abs=2e-5)
    assert f"{exact:.4f}" == "10.9916"


def test_initial_weights_have_the_reference_scales():
    torch.manual_seed(0)
    model = ViT(ViTConfig.named("S/16", depth=1, num_classes=10, head_bias=-3.0))
    width = 384
    bound = math.sqrt(6 / (2 * width))
    for matrix in model.blocks[0].attn.qkv.weight.split(width):
        assert matrix.abs().max() <= bound
        assert matrix.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    fan_in = 3 * 16 * 16
    assert model.patch_embed.proj.weight.var().item() == pytest.approx(1 / fan_in, rel=0.02)
    assert model.patch_embed.proj.weight.abs().max() <= 2 * fan_in**-0.5 / 0.8796 + 1e-4
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.03)
    fc1 = model.blocks[0].mlp.fc1
    assert fc1.weight.std().item() == pytest.approx(math.sqrt(2 / (width + 1536)), rel=0.02)
    assert 0 < fc1.bias.abs().max() < 1e-5
    assert not model.cls_token.any() and not model.head.weight.any()
    assert (model.head.bias == -3).all() and not model.blocks[0].attn.qkv.bias.any()
    mean = ViT(ViTConfig.named("S/16", depth=1, num_classes=10, pool="mean"))
    assert mean.pos_embed.std().item() == pytest.approx(width**-0.5, rel=0.03)


def test_sincos_positions_are_big_visions_formula():
    config = ViTConfig(**TINY, pool="mean", positions="sincos2d")
    y, x = np.mgrid[:3, :3]
    omega = 1.0 / 10_000.0 ** (np.arange(6) / 5)
    y, x = np.einsum("m,d->md", y.flatten(), omega), np.einsum("m,d->md", x.flatten(), omega)
    expected = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)
    model = ViT(config)
    np.testing.assert_allclose(model.pos_embed[0].numpy(), expected, atol=1e-7)
    assert "pos_embed" not in dict(model.named_parameters())


def test_both_forms_of_the_patch_embedding_are_the_convolution():
    model = trained(ViTConfig(**TINY))
    images = torch.randn(2, 3, 12, 12)
    expected = model.patch_embed.proj(images).flatten(2).transpose(1, 2)
    for layout in (torch.contiguous_format, torch.channels_last):
        for embed in (model.patch_embed, model.patch_embed.product):
            got = embed(images.to(memory_format=layout))
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_stochastic_depth_grows_linearly_or_is_constant():
    model = ViT(ViTConfig(**{**TINY, "depth": 5}, drop_path=0.4))
    for part in ("drop_path1", "drop_path2"):
        rates = [getattr(block, part).rate for block in model.blocks]
        assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    model = ViT(ViTConfig(**{**TINY, "depth": 5}, drop_path=0.4, drop_path_rates="constant"))
    assert {b.drop_path1.rate for b in model.blocks} == {0.4}


def test_dropout_acts_in_training_only_and_is_a_function_of_the_seed():
    model = trained(ViTConfig(**TINY, dropout=0.3, drop_path=0.3)).train()
    images = torch.randn(4, 3, 12, 12)
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(model(images))
    assert torch.equal(outputs[0], outputs[1]) and not torch.equal(outputs[0], outputs[2])
    model.eval()
    assert torch.equal(model(images), model(images))


def test_checkpointed_blocks_give_the_same_gradients():
    plain = trained(ViTConfig(**TINY, dropout=0.2)).train()
    again = ViT(ViTConfig(**TINY, dropout=0.2, checkpoint_blocks=True)).train()
    again.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 12, 12)
    for model in (plain, again):
        torch.manual_seed(3)
        model(images).square().sum().backward()
    for (name, p), q in zip(plain.named_parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name)


@pytest.mark.compile
@pytest.mark.parametrize(
    "settings",
    [
        dict(),
        dict(dropout=0.1, drop_path=0.1, pool="mean"),
        dict(checkpoint_blocks=True, pool="map"),
        dict(layer_scale=0.1, registers=2, class_position=False, qk_norm=True, qkv_bias=False),
        dict(pool="mean", registers=1, fc_norm=True),
    ],
)
def test_compiles_without_graph_breaks(settings):
    torch._dynamo.reset()
    model = trained(ViTConfig(**TINY, **settings)).train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    images, keys = torch.randn(2, 3, 12, 12), image_keys(0, 0, 2)
    expected, got = model(images, keys), compiled(images, keys)
    got.sum().backward()
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.compile
def test_inductor_computes_what_eager_computes():
    torch._dynamo.reset()
    settings = {**TINY, "depth": 1, "dropout": 0.2, "drop_path": 0.2, "drop_path_rates": "constant"}
    model = trained(ViTConfig(**settings)).train()
    images, keys = torch.randn(4, 3, 12, 12), image_keys(0, 0, 4)
    got = torch.compile(model, fullgraph=True)(images, keys)
    torch.testing.assert_close(got, model(images, keys), atol=1e-5, rtol=1e-5)


def test_meta_model_is_initialised_in_place():
    with torch.device("meta"):
        model = ViT(ViTConfig(**TINY, positions="sincos2d"))
    model.to_empty(device="cpu")
    torch.manual_seed(0)
    model.init_weights()
    fresh = ViT(ViTConfig(**TINY, positions="sincos2d"))
    torch.manual_seed(0)
    fresh.init_weights()
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_bfloat16_on_a_gpu_stays_close_to_float32():
    model = trained(ViTConfig.named("S/16", num_classes=100)).cuda()
    images = torch.randn(4, 3, 224, 224, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        got = model(images).float()
    assert torch.nn.functional.cosine_similarity(got, model(images)).min() > 0.999


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(image_size=225), "image_size (225) must be a multiple of patch_size (16)"),
        (dict(heads=5), "width (384) must be a multiple of heads (5)"),
        (dict(depth=0), "depth (0)"),
        (dict(drop_path=1.0), "drop_path (1.0)"),
        (dict(num_classes=0), "num_classes (0)"),
        (dict(registers=-1), "registers (-1) must be at least 0"),
        (dict(pool="mean", class_position=False), "class_position (False) has no effect without"),
        (dict(fc_norm=True), "fc_norm (True) changes nothing for pool token"),
        (dict(norm_eps=0.0), "norm_eps (0.0) must be above 0"),
    ],
)
def test_wrong_shapes_are_refused(settings, words):
    with pytest.raises(ValueError) as error:
        ViTConfig(**settings)
    assert words in str(error.value)


def test_model_without_classes_and_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match="num_classes is None"):
        ViT(ViTConfig())
    with pytest.raises(ValueError, match=r"images are \(1, 3, 16, 16\)"):
        ViT(ViTConfig(**TINY))(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="unknown ViT 'X/16'"):
        ViTConfig.named("X/16")
    assert set(SIZES) == {"Ti", "S", "B", "L", "So400m", "H", "g"}
