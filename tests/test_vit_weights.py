"""Files of weights: exact round trips, a forward pass in the JAX layout, and hostile files."""

import math
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from random_models import random_model
from safetensors import safe_open
from safetensors.torch import save_file

from vit.config import ViTConfig
from vit.model import ViT
from vit.positions import resample
from vit.weights import load_weights, read_weights, save_npz, save_safetensors

TINY = dict(image_size=12, patch_size=4, width=24, depth=11, mlp_width=40, heads=3, num_classes=7)


def make(seed=1, **settings):
    """A model none of whose weights is zero."""
    return random_model(ViTConfig(**{**TINY, **settings}), seed, scale=0.1)


def same(model, other):
    return all(torch.equal(t, other.state_dict()[n]) for n, t in model.state_dict().items())


# ---------------------------------------------------------------- round trips


def test_safetensors_come_back_exactly_with_their_metadata(tmp_path):
    model, other = make(1), make(2)
    save_safetensors(tmp_path / "model.safetensors", model.state_dict(), {"step": "7"})
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "step": "7"}
    load_weights(other, tmp_path / "model.safetensors")
    assert same(model, other)
    third = make(3)
    load_weights(third, tmp_path)  # a checkpoint directory
    assert same(model, third)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": {f"module.{k}": v for k, v in s.items()}},
    ],
)
def test_pth_comes_back_exactly(tmp_path, wrap):
    model, other = make(1), make(2)
    torch.save(wrap(model.state_dict()), tmp_path / "timm.pth")
    load_weights(other, tmp_path / "timm.pth")
    assert same(model, other)


@pytest.mark.parametrize(
    "settings",
    [
        dict(),
        dict(pre_logits=True),
        dict(pool="mean"),
        dict(pool="map"),
        dict(pool="mean", positions="sincos2d"),
    ],
    ids=str,
)
@pytest.mark.parametrize("layout", ["vit", "big_vision"])
def test_npz_comes_back_exactly(tmp_path, layout, settings):
    model, other = make(1, **settings), make(2, **settings)
    if layout == "big_vision" and model.cls_token is not None:
        with torch.no_grad():  # this layout has no slot for the class token's position
            model.pos_embed[:, 0] = 0
    save_npz(tmp_path / "a.npz", model, layout)
    load_weights(other, tmp_path / "a.npz")
    assert same(model, other)


def test_big_vision_adds_the_token_slot_to_the_token(tmp_path):
    model, other = make(1), make(2)
    save_npz(tmp_path / "a.npz", model, "big_vision")
    load_weights(other, tmp_path / "a.npz")
    assert not other.pos_embed[:, 0].any()
    images = torch.randn(2, 3, 12, 12)
    torch.testing.assert_close(model(images), other(images), atol=1e-6, rtol=1e-5)


# ------------------------------------------------- a forward pass over JAX arrays


def jax_forward(p, image, c, layout):
    """Logits of one image (S, S, 3) from Google's arrays, float64, in the JAX layout."""
    ln2, att, mlp = (2, 1, 3) if layout == "vit" else (1, 0, 0)

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6)
        return x * p[f"{name}/scale"] + p[f"{name}/bias"]

    def project(x, name):
        return np.einsum("nd,dhk->nhk", x, p[f"{name}/kernel"]) + p[f"{name}/bias"]

    def attention(x, y, name):
        q, k, v = (
            project(x, f"{name}/query"),
            project(y, f"{name}/key"),
            project(y, f"{name}/value"),
        )
        w = np.einsum("nhk,mhk->hnm", q / math.sqrt(q.shape[-1]), k)
        w = np.exp(w - w.max(-1, keepdims=True))
        x = np.einsum("hnm,mhk->nhk", w / w.sum(-1, keepdims=True), v)
        return np.einsum("nhk,hkd->nd", x, p[f"{name}/out/kernel"]) + p[f"{name}/out/bias"]

    def dense(x, name):
        return x @ p[f"{name}/kernel"] + p[f"{name}/bias"]

    def perceptron(x, name):
        h = dense(x, f"{name}/Dense_0")
        h = h * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        return dense(h, f"{name}/Dense_1")

    g, s = c.grid, c.patch_size
    patches = image.reshape(g, s, g, s, 3).transpose(0, 2, 1, 3, 4)  # g, g, P, P, 3
    x = np.einsum("ghijc,ijcd->ghd", patches, p["embedding/kernel"]) + p["embedding/bias"]
    x = x.reshape(g * g, -1)
    if layout == "vit":
        x = np.concatenate([p["cls"][0], x]) if "cls" in p else x
        x = x + p["Transformer/posembed_input/pos_embedding"][0]
    else:
        x = x + p["pos_embedding"][0]
        x = np.concatenate([p["cls"][0], x]) if "cls" in p else x
    for i in range(c.depth):
        name = f"Transformer/encoderblock_{i}"
        y = norm(x, f"{name}/LayerNorm_0")
        x = x + attention(y, y, f"{name}/MultiHeadDotProductAttention_{att}")
        x = x + perceptron(norm(x, f"{name}/LayerNorm_{ln2}"), f"{name}/MlpBlock_{mlp}")
    x = norm(x, "Transformer/encoder_norm")
    if c.pool == "map":
        x = attention(p["MAPHead_0/probe"][0], x, "MAPHead_0/MultiHeadDotProductAttention_0")
        x = x + perceptron(norm(x, "MAPHead_0/LayerNorm_0"), "MAPHead_0/MlpBlock_0")
        x = x[0]
    else:
        x = x[0] if c.pool == "token" else x.mean(0)
    if "pre_logits/kernel" in p:
        x = np.tanh(dense(x, "pre_logits"))
    return dense(x, "head")


def google_arrays(c, layout, seed=0):
    """Random arrays with the keys and shapes of a published file; float32."""
    rng, d, a = np.random.default_rng(seed), c.width, c.heads
    ln2, att, mlp = (2, 1, 3) if layout == "vit" else (1, 0, 0)
    shapes = {"embedding/kernel": (c.patch_size, c.patch_size, 3, d), "embedding/bias": (d,)}
    if c.pool == "token":
        shapes["cls"] = (1, 1, d)
    slots = c.grid**2 + (c.pool == "token" and layout == "vit")
    where = "Transformer/posembed_input/pos_embedding" if layout == "vit" else "pos_embedding"
    shapes[where] = (1, slots, d)

    def block(name, ln, attention, perceptron):
        for norm in ln:
            shapes.update({f"{name}/{norm}/scale": (d,), f"{name}/{norm}/bias": (d,)})
        for part in ("query", "key", "value"):
            shapes[f"{name}/{attention}/{part}/kernel"] = (d, a, d // a)
            shapes[f"{name}/{attention}/{part}/bias"] = (a, d // a)
        shapes[f"{name}/{attention}/out/kernel"] = (a, d // a, d)
        shapes[f"{name}/{attention}/out/bias"] = (d,)
        shapes[f"{name}/{perceptron}/Dense_0/kernel"] = (d, c.mlp_width)
        shapes[f"{name}/{perceptron}/Dense_0/bias"] = (c.mlp_width,)
        shapes[f"{name}/{perceptron}/Dense_1/kernel"] = (c.mlp_width, d)
        shapes[f"{name}/{perceptron}/Dense_1/bias"] = (d,)

    for i in range(c.depth):
        block(
            f"Transformer/encoderblock_{i}",
            ("LayerNorm_0", f"LayerNorm_{ln2}"),
            f"MultiHeadDotProductAttention_{att}",
            f"MlpBlock_{mlp}",
        )
    shapes |= {"Transformer/encoder_norm/scale": (d,), "Transformer/encoder_norm/bias": (d,)}
    if c.pool == "map":
        block("MAPHead_0", ("LayerNorm_0",), "MultiHeadDotProductAttention_0", "MlpBlock_0")
        shapes["MAPHead_0/probe"] = (1, 1, d)
    if c.pre_logits:
        shapes |= {"pre_logits/kernel": (d, d), "pre_logits/bias": (d,)}
    shapes |= {"head/kernel": (d, c.num_classes), "head/bias": (c.num_classes,)}
    return {k: (rng.standard_normal(s) * 0.2).astype(np.float32) for k, s in shapes.items()}


FORMS = [
    ("vit", "", dict()),
    ("vit", "opt/target/", dict(pre_logits=True)),
    ("big_vision", "params/", dict(pool="mean")),
    ("big_vision", "params/img/", dict(pool="map")),
    ("big_vision", "", dict(pool="token")),
]


@pytest.mark.parametrize("layout, prefix, settings", FORMS, ids=str)
def test_google_files_give_the_logits_of_their_jax_arrays(tmp_path, layout, prefix, settings):
    model = make(gelu="tanh", **settings)
    arrays = google_arrays(model.config, layout)
    extra = {"opt/state/step": np.int32(9)} if prefix == "opt/target/" else {}
    np.savez(tmp_path / "g.npz", **{prefix + k: a for k, a in arrays.items()}, **extra)
    load_weights(model, tmp_path / "g.npz")
    image = np.random.default_rng(1).standard_normal((12, 12, 3))
    arrays = {k: a.astype(np.float64) for k, a in arrays.items()}
    expected = jax_forward(arrays, image, model.config, layout)
    got = model(torch.tensor(image.transpose(2, 0, 1)[None], dtype=torch.float32))[0]
    assert np.abs(got.detach().numpy() - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("layout, settings", [("vit", dict()), ("big_vision", dict(pool="map"))])
def test_saved_npz_gives_the_logits_of_the_model(tmp_path, layout, settings):
    model = make(gelu="tanh", **settings)
    save_npz(tmp_path / "a.npz", model, layout)
    with np.load(tmp_path / "a.npz") as file:
        arrays = {k.removeprefix("params/"): file[k].astype(np.float64) for k in file.files}
    assert set(arrays) == set(google_arrays(model.config, layout))
    image = np.random.default_rng(1).standard_normal((12, 12, 3))
    expected = jax_forward(arrays, image, model.config, layout)
    got = model(torch.tensor(image.transpose(2, 0, 1)[None], dtype=torch.float32))[0]
    assert np.abs(got.detach().numpy() - expected).max() <= 1e-5 * np.abs(expected).max()


def test_stacked_blocks_and_raw_bfloat16_are_read(tmp_path):
    model = make(pool="mean")
    flat = google_arrays(model.config, "big_vision")
    flat = {k: (a.view(np.uint32) & 0xFFFF0000).view(np.float32) for k, a in flat.items()}
    stacked = {k: a for k, a in flat.items() if "encoderblock" not in k}
    for key in [k for k in flat if "encoderblock_0/" in k]:
        rows = [flat[key.replace("_0/", f"_{i}/", 1)] for i in range(model.config.depth)]
        stacked[key.replace("encoderblock_0", "encoderblock")] = np.stack(rows)
    raw = {
        f"params/{k}": (a.view(np.uint32) >> 16).astype(np.uint16).view("V2")
        for k, a in stacked.items()
    }
    np.savez(tmp_path / "raw.npz", **raw)
    np.savez(tmp_path / "flat.npz", **flat)
    load_weights(model, tmp_path / "raw.npz")
    other = make(2, pool="mean")
    load_weights(other, tmp_path / "flat.npz")
    assert same(model, other)


# --------------------------------------------------------------- head and positions


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
def test_positions_are_resampled_to_another_image_size(tmp_path, method):
    small = make()
    save_safetensors(tmp_path / "a.safetensors", small.state_dict())
    large = make(2, image_size=20)
    load_weights(large, tmp_path / "a.safetensors", positions=method)
    expected = resample(small.pos_embed, 5, slots=1, method=method)
    assert torch.equal(large.pos_embed, expected)
    assert torch.equal(large.pos_embed[:, 0], small.pos_embed[:, 0])


@pytest.mark.parametrize("old, new", [(7, 12), (14, 24), (14, 32), (16, 37), (24, 14)])
def test_bilinear_positions_equal_scipys_zoom_of_the_paper(old, new):
    ndimage = pytest.importorskip("scipy.ndimage")
    grid = np.random.default_rng(0).standard_normal((old, old, 3))
    expected = ndimage.zoom(grid, (new / old, new / old, 1), order=1).reshape(1, new * new, 3)
    positions = torch.tensor(grid, dtype=torch.float32).reshape(1, old * old, 3)
    got = resample(positions, new, slots=0, method="bilinear")
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-5)


def test_fixed_positions_follow_the_grid_and_others_are_refused(tmp_path):
    settings = dict(pool="mean", positions="sincos2d")
    model, large = make(**settings), make(2, image_size=20, **settings)
    fresh = large.pos_embed.clone()
    save_safetensors(tmp_path / "a.safetensors", model.state_dict())
    load_weights(large, tmp_path / "a.safetensors")
    assert torch.equal(large.pos_embed, fresh)
    save_safetensors(tmp_path / "b.safetensors", make(pool="mean").state_dict())
    with pytest.raises(ValueError, match="not the sin-cos formula"):
        load_weights(model, tmp_path / "b.safetensors")


def test_dropped_head_stays_fresh_and_takes_pre_logits_with_it(tmp_path):
    save_npz(tmp_path / "a.npz", make(pre_logits=True))
    torch.manual_seed(5)
    tuned = ViT(ViTConfig(**{**TINY, "num_classes": 4}))
    load_weights(tuned, tmp_path / "a.npz", head="drop")
    assert not tuned.head.weight.any() and not tuned.head.bias.any()
    assert torch.equal(tuned.norm.weight, make(pre_logits=True).norm.weight)


def test_zero_head_of_a_published_file_is_reported(tmp_path, caplog):
    model = make()
    with torch.no_grad():
        model.head.weight.zero_()
    save_npz(tmp_path / "a.npz", model)
    load_weights(model, tmp_path / "a.npz")
    assert "all zeros" in caplog.text


# ------------------------------------------------------------------ refusals


def refused(model, path, **options):
    """The message of the refusal; the model is as before."""
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(ValueError) as error:
        load_weights(model, path, **options)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    return str(error.value)


def test_every_key_that_does_not_fit_is_named(tmp_path):
    state = dict(make().state_dict())
    state["blocks.3.mlp.fc1.bias"] = torch.zeros(41)
    state["norm.scale"] = state.pop("norm.weight")
    del state["blocks.10.attn.proj.weight"]
    save_safetensors(tmp_path / "a.safetensors", state)
    message = refused(make(2), tmp_path / "a.safetensors")
    for words in (
        "blocks.3.mlp.fc1.bias is (41,) in the file and (40,) in the model",
        "norm.scale (24,) is not in the model",
        "norm.weight (24,) is missing",
        "blocks.10.attn.proj.weight (24, 24) is missing",
        "head='drop'",
    ):
        assert words in message


def test_integers_are_not_weights(tmp_path):
    state = dict(make().state_dict()) | {"norm.weight": torch.ones(24, dtype=torch.int64)}
    save_file(state, tmp_path / "a.safetensors")
    assert "norm.weight is torch.int64" in refused(make(2), tmp_path / "a.safetensors")


@pytest.mark.parametrize("pool, other", [("token", "mean"), ("mean", "token"), ("map", "mean")])
def test_another_pooling_is_refused(tmp_path, pool, other):
    save_safetensors(tmp_path / "a.safetensors", make(pool=pool).state_dict())
    message = refused(make(2, pool=other), tmp_path / "a.safetensors")
    assert "cls_token" in message or "attn_pool.latent" in message


def test_another_number_of_heads_is_refused_though_the_shapes_fit(tmp_path):
    save_npz(tmp_path / "a.npz", make(heads=3))
    assert "3 attention heads, the model has 4" in refused(make(2, heads=4), tmp_path / "a.npz")


def test_npz_with_a_missing_or_unknown_or_misshapen_array_is_refused(tmp_path):
    arrays = google_arrays(make().config, "vit")
    key = "Transformer/encoderblock_2/MultiHeadDotProductAttention_1/key/kernel"
    for change, words in (
        ({key: None}, "blocks.2.attn.qkv.weight is (48, 24) in the file"),
        ({"Transformer/extra": arrays["cls"]}, "a plain ViT has no parameter for"),
        ({key: arrays[key].reshape(24, 24)}, f"{key} is (24, 24), but has 3 axes"),
        ({"embedding/kernel": None}, "lacks the key embedding/kernel"),
        ({"cls": np.zeros((1, 1, 24), np.int64)}, "cls is int64"),
        ({"cls": np.float32(1)}, "cls is a single number"),
    ):
        changed = {k: a for k, a in (arrays | change).items() if a is not None}
        np.savez(tmp_path / "a.npz", **changed)
        assert words in refused(make(2), tmp_path / "a.npz")


class Bomb:
    """Writes a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_pickled_code_is_refused_and_does_not_run(tmp_path):
    state = dict(make().state_dict()) | {"norm.weight": Bomb(tmp_path / "ran")}
    torch.save(state, tmp_path / "bomb.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(state))
    np.savez(tmp_path / "bomb.npz", **{"embedding/kernel": np.array([Bomb(tmp_path / "ran")])})
    (tmp_path / "fake.npz").write_bytes(pickle.dumps(state))
    (tmp_path / "fake.safetensors").write_bytes(pickle.dumps(state))
    for name in ("bomb.pth", "raw.pth", "bomb.npz", "fake.npz", "fake.safetensors"):
        message = refused(make(2), tmp_path / name)
        assert name in message
    assert not (tmp_path / "ran").exists()


def test_whole_pickled_models_are_refused(tmp_path):
    torch.save(make(), tmp_path / "model.pth")
    assert "state_dict" in refused(make(2), tmp_path / "model.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    assert "contains no state_dict" in refused(make(2), tmp_path / "list.pth")


@pytest.mark.parametrize("kind", ["safetensors", "pth", "npz"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated_files_are_refused(tmp_path, kind, share):
    whole = tmp_path / f"whole.{kind}"
    if kind == "npz":
        save_npz(whole, make())
    elif kind == "pth":
        torch.save(make().state_dict(), whole)
    else:
        save_safetensors(whole, make().state_dict())
    data = whole.read_bytes()
    (tmp_path / f"cut.{kind}").write_bytes(data[: int(len(data) * share)])
    assert f"cut.{kind}" in refused(make(2), tmp_path / f"cut.{kind}")


def test_damaged_npz_member_is_refused(tmp_path):
    save_npz(tmp_path / "a.npz", make())
    data = bytearray((tmp_path / "a.npz").read_bytes())
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        info = archive.infolist()[5]
    data[info.header_offset + 200] ^= 0xFF
    (tmp_path / "a.npz").write_bytes(bytes(data))
    assert "a.npz" in refused(make(2), tmp_path / "a.npz")


def test_missing_and_unknown_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="model.safetensors is not there"):
        read_weights(tmp_path)
    (tmp_path / "a.h5").write_bytes(b"x")
    with pytest.raises(ValueError, match="unknown file type; known: .safetensors"):
        read_weights(tmp_path / "a.h5")
    save_safetensors(tmp_path / "model.safetensors", make().state_dict())
    for option in (dict(head="new"), dict(positions="nearest")):
        with pytest.raises(ValueError, match="known"):
            load_weights(make(image_size=20), tmp_path, **option)


def test_interrupted_save_leaves_the_old_file(tmp_path):
    model = make()
    save_safetensors(tmp_path / "a.safetensors", model.state_dict())
    with pytest.raises(AttributeError):
        save_safetensors(tmp_path / "a.safetensors", {"x": None})
    other = make(2)
    load_weights(other, tmp_path / "a.safetensors")
    assert same(model, other)
