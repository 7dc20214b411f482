"""Training without PyTorch: gradients, both optimizers, and what they save."""

import json

import numpy as np
import pytest
import torch
from native_backends import saved

from vit.config import OptimConfig
from vit.loss import softmax_loss
from vit.native.model import NativeViT
from vit.optim import adamw, parameter_groups

KINDS = {
    "class token": {},
    "registers": {"registers": 2},
    "no positions for tokens": {"registers": 2, "class_position": False},
    "mean": {"pool": "mean"},
    "mean with registers": {"pool": "mean", "registers": 3},
    "fc_norm and layer scale": {"pool": "mean", "fc_norm": True, "layer_scale": 0.1},
    "layer scale": {"layer_scale": 0.1},
    "pre_logits": {"pre_logits": True},
    "no qkv bias, tanh": {"qkv_bias": False, "gelu": "tanh", "norm_eps": 1e-3},
}
SIZES = {
    "S/32": {"image_size": 224, "patch_size": 32, "width": 384, "mlp_width": 1536, "heads": 6}
    | {"depth": 12},
    "Ti/16 mean": {"image_size": 224, "patch_size": 16, "width": 192, "mlp_width": 768, "heads": 3}
    | {"pool": "mean"},
}


def batch_of(model, size, seed=1):
    """Images and targets: mixtures of two classes, whose shares sum to 1."""
    generator = torch.Generator().manual_seed(seed)
    side, classes = model.config.image_size, model.config.num_classes
    shares = torch.rand(size, 1, generator=generator)
    rows = [torch.eye(classes)[torch.randint(classes, (size,), generator=generator)] for _ in "ab"]
    images = torch.randn(size, 3, side, side, generator=generator)
    return images, shares * rows[0] + (1 - shares) * rows[1]


def trained(path, backend, threads=1, **options):
    """A model that is open for training; threads would wait for each other where cores are busy."""
    model = NativeViT.open(path, backend=backend, threads=threads)
    model.begin_training(**options)
    return model


def step(native, images, targets, lr=1e-3):
    """A step of the native model, with PyTorch's tensors."""
    return native.train_step(images.numpy(), targets.numpy(), lr)


def assert_gradients_equal(native, model, images, targets):
    """Loss and gradient of each parameter, against autograd's."""
    loss = softmax_loss(model(images), targets).mean()
    loss.backward()
    assert native.gradients(images.numpy(), targets.numpy()) == pytest.approx(loss.item(), 1e-5)
    for name, parameter in model.named_parameters():
        gradient = native.read("gradient", name, tuple(parameter.shape))
        difference = np.linalg.norm(gradient - parameter.grad.numpy())
        assert difference < 1e-4 * parameter.grad.norm().item(), name


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_autograds(kind, batch, backend, tmp_path):
    model, path = saved(tmp_path / "checkpoint", **KINDS[kind])
    native = trained(path, backend)
    assert_gradients_equal(native, model, *batch_of(model, batch))


@pytest.mark.parametrize("size", SIZES)
def test_gradients_of_each_size_equal_autograds(size, backend, tmp_path):
    model, path = saved(tmp_path / "checkpoint", **SIZES[size])
    native = trained(path, backend, threads=2)
    assert_gradients_equal(native, model, *batch_of(model, 2))


def test_targets_count_as_scaled_to_sum_1_and_a_row_without_any_counts_0(backend, tmp_path):
    model, path = saved(tmp_path / "checkpoint")
    images, targets = batch_of(model, 3)
    targets[0] *= 3
    targets[2] = 0
    assert_gradients_equal(trained(path, backend), model, images, targets)


def test_steps_of_adamw_follow_pytorchs(backend, tmp_path):
    model, path = saved(tmp_path / "checkpoint", layer_scale=0.1, registers=1)
    native = trained(path, backend, weight_decay=0.3, beta1=0.8, beta2=0.99, eps=1e-6)
    config = OptimConfig(lr=1e-3, weight_decay=0.3, betas=(0.8, 0.99), eps=1e-6)
    optimizer = adamw(parameter_groups(model, config), config)
    for number in range(20):
        images, targets = batch_of(model, 4, seed=number % 3)
        optimizer.zero_grad()
        loss = softmax_loss(model(images), targets).mean()
        loss.backward()
        optimizer.step()
        assert step(native, images, targets) == pytest.approx(loss.item(), rel=1e-3)
        if number:
            continue
        first = loss.item()
        for name, parameter in model.named_parameters():
            weight = native.read("weight", name, tuple(parameter.shape))
            # roundings of a gradient as small as eps show as some of the rate's 1e-3
            np.testing.assert_allclose(weight, parameter.detach(), atol=5e-5, err_msg=name)
    assert loss < first / 2


def test_positions_that_are_fixed_stay(backend, tmp_path):
    model, path = saved(tmp_path / "checkpoint", positions="sincos2d")
    native = trained(path, backend)
    images, targets = batch_of(model, 2)
    step(native, images, targets)
    shape = tuple(model.pos_embed.shape)
    np.testing.assert_array_equal(native.read("weight", "pos_embed", shape), model.pos_embed)
    with pytest.raises(ValueError, match="pos_embed is not trained"):
        native.read("gradient", "pos_embed", shape)


def test_moments_in_8_bits_are_torchaos(backend, tmp_path):
    pytest.importorskip("torchao")
    from torchao.optim.adam import single_param_adam
    from torchao.optim.subclass_8bit import OptimState8bit

    model, path = saved(tmp_path / "checkpoint")
    native = trained(path, backend, optimizer="adamw8bit", weight_decay=0.1)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    moments = {}
    values = differ = 0
    for number in (1, 2, 3):
        before = {n: torch.from_numpy(native.read("weight", n, s)) for n, s in shapes.items()}
        step(native, *batch_of(model, 3, seed=number))
        for name, shape in shapes.items():
            gradient = torch.from_numpy(native.read("gradient", name, shape))
            if name not in moments:
                packed = gradient.numel() >= 4096 and gradient.numel() % 256 == 0
                zeros = OptimState8bit.zeros if packed else lambda shape, signed: torch.zeros(shape)
                moments[name] = zeros(shape, True), zeros(shape, False)
            decays = len(shape) > 1 and name not in ("pos_embed", "cls_token")
            factors = torch.tensor(1e-3), 0.9, 0.999, 0.1 * decays, 1e-8, True, False
            count = torch.tensor(float(number))
            single_param_adam(before[name], gradient, count, *moments[name], None, *factors)
            weight = native.read("weight", name, shape)
            np.testing.assert_allclose(weight, before[name], atol=1e-5, err_msg=name)
            for what, moment in zip(("moment1", "moment2"), moments[name], strict=True):
                wanted = moment.dequantize() if hasattr(moment, "codes") else moment
                wrong = ~np.isclose(native.read(what, name, shape), wanted, rtol=1e-5, atol=0)
                values, differ = values + wrong.size, differ + wrong.sum()
    assert differ <= values / 20_000  # between two codes, the last bit decides


def test_moments_in_8_bits_take_26_percent_of_the_bytes_for_s32(backend, tmp_path):
    _, path = saved(tmp_path / "checkpoint", **SIZES["S/32"], num_classes=1000)
    full, packed = (trained(path, backend, optimizer=name) for name in ("adamw", "adamw8bit"))
    # norms and biases of the width keep moments in float32
    assert 0.25 < packed.state_bytes / full.state_bytes <= 0.26


def test_moments_in_8_bits_train_alike(backend, tmp_path):
    model, path = saved(tmp_path / "checkpoint", width=192, mlp_width=768)
    names = ("adamw", "adamw8bit")
    full, packed = (trained(path, backend, optimizer=name) for name in names)
    values = sum(p.numel() for p in model.parameters())
    assert full.state_bytes == 8 * values
    batches = [batch_of(model, 4, seed) for seed in range(3)]
    for number in range(20):
        losses = [step(each, *batches[number % 3]) for each in (full, packed)]
        assert losses[1] == pytest.approx(losses[0], rel=0.01)


def test_saved_weights_open_as_what_was_trained(backend, tmp_path):
    model, path = saved(tmp_path / "checkpoint", gelu="tanh", norm_eps=1e-3, layer_scale=0.1)
    native = trained(path, backend)
    images, targets = batch_of(model, 2)
    before = native(images.numpy())
    step(native, images, targets)
    after = native(images.numpy())
    assert np.abs(after - before).max() > 1e-3
    target = tmp_path / "trained" / "weights.safetensors"
    target.parent.mkdir()
    target.write_text("old")
    native.save(target)
    np.testing.assert_array_equal(
        NativeViT.open(target, backend=backend, threads=1)(images.numpy()), after
    )
    assert [file.name for file in target.parent.iterdir()] == [target.name]


def test_a_saved_file_loads_into_the_pytorch_model(backend, tmp_path):
    from safetensors import safe_open

    model, path = saved(tmp_path / "checkpoint", registers=1)
    native = trained(path, backend)
    images, targets = batch_of(model, 2)
    step(native, images, targets)
    native.save(tmp_path / "new.safetensors")
    with safe_open(tmp_path / "new.safetensors", "pt") as file:
        model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        assert json.loads(file.metadata()["vit"])["heads"] == 3
    np.testing.assert_allclose(model(images).detach(), native(images.numpy()), atol=1e-5)


def test_a_loss_that_is_not_finite_changes_nothing(backend, tmp_path):
    model, path = saved(tmp_path / "checkpoint")
    native = trained(path, backend)
    images, targets = batch_of(model, 2)
    before = native(images.numpy())
    with pytest.raises(ValueError, match=r"the loss is -?nan, so the step was left out"):
        step(native, images * float("nan"), targets)
    np.testing.assert_array_equal(native(images.numpy()), before)
    with pytest.raises(ValueError, match="no gradients"):
        native.read("gradient", "head.bias", (10,))


def test_what_cannot_be_trained_is_refused_by_name(backend, tmp_path):
    for number, (setting, reason) in enumerate(
        {"dropout": "dropout above 0", "drop_path": "drop_path above 0"}.items()
    ):
        _, path = saved(tmp_path / str(number), **{setting: 0.1})
        with pytest.raises(ValueError, match=reason):
            trained(path, backend)
    _, path = saved(tmp_path / "headless", head=False)
    with pytest.raises(ValueError, match="has no head"):
        trained(path, backend)


def test_calls_in_the_wrong_order_and_of_wrong_sizes_are_errors(backend, tmp_path):
    model, path = saved(tmp_path / "checkpoint")
    images, targets = (each.numpy() for each in batch_of(model, 2))
    native = NativeViT.open(path, backend=backend, threads=1)
    for call in (
        lambda: native.train_step(images, targets, 1e-3),
        lambda: native.save(tmp_path / "new"),
        lambda: native.state_bytes,
    ):
        with pytest.raises(ValueError, match="not in training; call vit_train_begin"):
            call()
    for options, reason in {
        (("optimizer", "sgd"),): "optimizer is sgd; known: adamw, adamw8bit",
        (("beta1", 1),): "beta1 is 1; give a number of at least 0 and below 1",
        (("momentum", 0.9),): "unknown option momentum",
    }.items():
        with pytest.raises(ValueError, match=reason):
            native.begin_training(**dict(options))
    native.begin_training()
    for call, reason in (
        (native.begin_training, "in training already"),
        (lambda: native.train_step(images, targets[:1], 1e-3), r"targets are \(1, 10\)"),
        (lambda: native.train_step(images, targets, float("nan")), "lr is nan"),
        (lambda: native.train_step(images[:0], targets[:0], 1e-3), "batch is 0"),
        (lambda: native.read("weight", "head.bias", (9,)), "head.bias has 10 values, not 9"),
        (lambda: native.read("weight", "head", (9,)), "no parameter head"),
        (lambda: native.read("momentum", "head.bias", (10,)), "cannot read momentum"),
        (lambda: native.save(tmp_path / "no" / "folder"), "could not be written: No such file"),
    ):
        with pytest.raises(ValueError, match=reason):
            call()
