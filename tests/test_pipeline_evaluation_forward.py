"""The forward pass of an evaluation: precision, and one compiled shape."""

import pytest
import torch

from pipeline.evaluation.config import EvaluateConfig
from pipeline.evaluation.forward import Forward, products_in
from vit.config import ImageConfig, ViTConfig
from vit.model import ViT

IMAGES = ImageConfig(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = ViT(ViTConfig(**TINY)).eval()
    torch.nn.init.normal_(model.head.weight)
    return model


TINY = dict(image_size=16, patch_size=8, width=32, depth=2, mlp_width=64, heads=2, num_classes=5)


def crops(count):
    draw = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 16, 16, 3), dtype=torch.uint8, generator=draw)


def settings(**changes):
    return EvaluateConfig(images=IMAGES, **changes)


def by_hand(images):
    """The formula of the preparation, in float64."""
    pixels = images.double() / 255
    return ((pixels - torch.tensor(IMAGES.mean)) / torch.tensor(IMAGES.std)).permute(0, 3, 1, 2)


def test_logits_and_features_are_those_of_the_normalised_crops(model):
    images = crops(3)
    expected = model(by_hand(images).float())
    features = model.features(by_hand(images).float())
    torch.testing.assert_close(Forward(model, settings())(images), expected.detach())
    found = Forward(model, settings(), features=True)(images)
    torch.testing.assert_close(found, features.detach())
    assert not found.requires_grad and not Forward(model, settings()).compiles  # on a CPU


def test_bf16_rounds_and_gives_float32(model):
    images = crops(3)
    exact, half = (Forward(model, settings(precision=p))(images) for p in ("fp32", "bf16"))
    assert half.dtype == torch.float32 and not torch.equal(half, exact)
    torch.testing.assert_close(half, exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(("precision", "during"), [("tf32", "high"), ("fp32", "highest")])
def test_tf32_holds_for_the_forward_pass_alone(model, precision, during):
    seen = []
    hook = model.register_forward_pre_hook(
        lambda module, given: seen.append(torch.get_float32_matmul_precision())
    )
    Forward(model, settings(precision=precision))(crops(1))
    hook.remove()
    assert seen == [during] and torch.get_float32_matmul_precision() == "highest"
    with pytest.raises(RuntimeError), products_in("tf32"):
        raise RuntimeError
    assert torch.get_float32_matmul_precision() == "highest"


def test_the_residual_stream_is_float32_whatever_the_model_trains_with(model):
    images = crops(2)
    expected = Forward(model, settings(precision="bf16"))(images)
    model.residual_dtype = torch.bfloat16
    assert torch.equal(Forward(model, settings(precision="bf16"))(images), expected)
    assert model.residual_dtype == torch.bfloat16  # as it was
    model.residual_dtype = torch.float32


@pytest.mark.compile
def test_smaller_batches_at_the_end_compile_nothing_new(model):
    forward, plain = (Forward(model, settings()) for _ in range(2))
    forward.compiles = True  # as on a GPU
    counters = torch._dynamo.utils.counters
    counters.clear()
    for count in (4, 4, 3, 1):
        torch.testing.assert_close(forward(crops(count)), plain(crops(count)))
    assert counters["stats"]["unique_graphs"] == 1
