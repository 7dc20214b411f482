"""What training differentiates, in float32, in bfloat16, and with a residual stream of either."""

import pytest
import torch
from sklearn.datasets import load_digits

from pipeline.train.objective import Objective
from vit.config import ImageConfig, LossConfig, OptimConfig, ViTConfig
from vit.loss import make_loss
from vit.model import ViT
from vit.optim import make_optimizer

MODEL = ViTConfig(
    image_size=8, patch_size=2, width=48, depth=6, mlp_width=96, heads=3, num_classes=10
)
STEPS, BATCH, LAST = 90, 64, 20


def losses(precision, residual="fp32"):
    """Loss of each step of a short training on the digits."""
    digits = load_digits()
    images = torch.from_numpy(digits.images * 15).to(torch.uint8)[..., None].expand(-1, -1, -1, 3)
    labels = torch.from_numpy(digits.target)[:, None]
    torch.manual_seed(0)
    model = ViT(MODEL)
    loss_of = make_loss(LossConfig())
    objective = Objective(model, ImageConfig(), loss_of, 10, precision, residual)
    optimizer = make_optimizer(model, OptimConfig(lr=2e-3))
    order = torch.Generator().manual_seed(0)
    found = []
    for _ in range(STEPS):
        rows = torch.randint(len(images), (BATCH,), generator=order)
        loss = objective(images[rows], labels[rows], None) / BATCH
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return torch.tensor(found)


@pytest.fixture(scope="module")
def exact():
    return losses("fp32")


@pytest.mark.parametrize("residual", ["fp32", "bf16"])
def test_training_in_bfloat16_follows_float32_with_either_residual_stream(exact, residual):
    rounded = losses("bf16", residual)
    assert exact[:5].mean() > 2 and exact[-LAST:].mean() < 1.2
    # the first steps have hardly diverged; later the mean over some steps is what is alike
    torch.testing.assert_close(rounded[:5], exact[:5], rtol=0.01, atol=0)
    assert rounded[-LAST:].mean().item() == pytest.approx(exact[-LAST:].mean().item(), rel=0.05)


def streams(precision, residual):
    """Types of the residual stream at the start and the end of each block."""
    model, types = ViT(MODEL.replace({"layer_scale": 1.0})), []
    for block in model.blocks:
        block.register_forward_hook(
            lambda block, given, result: types.extend([given[0].dtype, result.dtype])
        )
    objective = Objective(model, ImageConfig(), make_loss(LossConfig()), 10, precision, residual)
    objective(torch.zeros(2, 8, 8, 3, dtype=torch.uint8), torch.ones(2, 1).long(), None)
    return set(types)


@pytest.mark.parametrize(
    ("precision", "residual", "expected"),
    [
        ("fp32", "fp32", torch.float32),
        ("fp32", "bf16", torch.float32),  # which only has an effect with bf16
        ("bf16", "fp32", torch.float32),
        ("bf16", "bf16", torch.bfloat16),
    ],
)
def test_the_residual_stream_has_one_type_from_end_to_end(precision, residual, expected):
    assert streams(precision, residual) == {expected}
