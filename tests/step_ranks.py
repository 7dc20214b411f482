"""What the processes of tests/test_pipeline_train_step.py do: steps, and the formulas they follow.

The reference is float64, with nothing of the implementation but the model's forward pass.
"""

import copy
from functools import partial
from types import SimpleNamespace

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from pipeline.data.order import RankShare
from pipeline.settings.config import TrainConfig
from pipeline.train.batches import Batch
from pipeline.train.state import State
from pipeline.train.step import backward, take_step
from support.splitmix import scramble
from vit.batch import mixing_draws
from vit.config import LossConfig, MixConfig, OptimConfig, ViTConfig
from vit.optim import Ema, set_learning_rate

BATCH, SIDE, CLASSES, LR = 20, 16, 7, 1e-3
PARENTS = [-1, -1, 0, 0, 1, 2, 2]  # depths 0 0 1 1 1 2 2
MEAN, STD = 0.5, 0.5
CPU = torch.device("cpu")


def config(loss="softmax", parallel="ddp", optimizer="adamw", **changes):
    settings = {
        "model": ViTConfig(
            image_size=SIDE,
            patch_size=8,
            width=32,
            depth=2,
            mlp_width=64,
            heads=2,
            num_classes=CLASSES,
        ),
        "mix": MixConfig(mixup=0.4, cutmix=1.0),
        "loss": LossConfig(name=loss),
        # a large eps: the first update is not the sign of the gradient
        "optim": OptimConfig(name=optimizer, lr=LR, ema=0.9, clip_norm=0.05, eps=1e-2),
        "parallel": parallel,
        "precision": "fp32",
        "compile": False,
        "micro_batch": 4,
        "global_batch": BATCH,
        "seed": 3,
    }
    return TrainConfig(**{**settings, **changes})


def make(settings, device=CPU):
    state = State(settings, device, None, dist.get_world_size(), parents=PARENTS)
    with torch.no_grad():  # a head of zeros would hide the gradients of all else
        torch.manual_seed(1)
        for name, parameter in state.model.named_parameters():
            if name == "head.weight":
                values = torch.randn(CLASSES, parameter.shape[1])
                if isinstance(parameter, DTensor):
                    rows = dist.get_rank() * -(-CLASSES // dist.get_world_size())
                    block = parameter.to_local()
                    block.copy_(values[rows : rows + len(block)])
                else:
                    parameter.copy_(values)
    state.ema = Ema(state.model, settings.optim.ema)
    set_learning_rate(state.optimizer, LR)
    return state


def global_batch(step=0):
    draw = torch.Generator().manual_seed(step)
    images = torch.randint(0, 256, (BATCH, SIDE, SIDE, 3), dtype=torch.uint8, generator=draw)
    labels = torch.randint(CLASSES, (BATCH, 3), generator=draw)
    labels[::2, 1:] = -1  # half of the images have one label
    labels[5] = -1  # could not be read
    return images, labels


def share():
    return RankShare.of(dist.get_rank(), dist.get_world_size(), BATCH)


def own_batch(step=0, device=CPU):
    rows = slice(share().low, share().high)
    images, labels = (column[rows].to(device) for column in global_batch(step))
    return Batch(images=images, labels=labels, keys=np.empty(0), faults=[])


def step(state, number=0, batch=None):
    """The numbers of a step, on the device."""
    votes, at = [0.0, 0.0, 0.0], lambda phase: None
    return take_step(state, batch or own_batch(number), share(), dist.get_world_size(), votes, at)


def whole(tensor):
    tensor = tensor.detach()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone()


def named(model, value=lambda p: p):
    return {name: whole(value(p)) for name, p in model.named_parameters()}


# ------------------------------------------------------------------ the formulas, in float64


def softmax_loss(logits, target):
    return -(target / target.sum() * logits.log_softmax(0)).sum()


def sigmoid_loss(logits, target):
    p = logits.sigmoid()
    return -(target * p.log() + (1 - target) * (1 - p).log()).sum()


def semantic_loss(logits, target):
    """Levels {0, 1} and {2, 3, 4}; a label counts as its ancestor of the level."""
    target = target / target.sum()
    first = torch.stack([target[[0, 2, 3, 5, 6]].sum(), target[[1, 4]].sum()])
    second = torch.stack([target[[2, 5, 6]].sum(), target[3], target[4]])
    loss = -(first * logits[[0, 1]].log_softmax(0)).sum()
    return loss - CLASSES / 5 * (second * logits[[2, 3, 4]].log_softmax(0)).sum()


LOSSES = {"softmax": softmax_loss, "sigmoid": sigmoid_loss, "semantic": semantic_loss}


def mixed(images, targets, draws):
    """Pixel by pixel: the weight of the image itself, or none within the box."""
    out, out_targets = images.clone(), targets.clone()
    for i, (weight, top, bottom, left, right) in enumerate(draws.double().tolist()):
        own = torch.full((SIDE, SIDE), weight, dtype=torch.float64)
        if right > left:
            own = torch.ones(SIDE, SIDE, dtype=torch.float64)
            for y in range(SIDE):
                for x in range(SIDE):
                    within = top * SIDE < y + 0.5 < bottom * SIDE
                    if within and left * SIDE < x + 0.5 < right * SIDE:
                        own[y, x] = 0
        out[i] = own * images[i] + (1 - own) * images[i ^ 1]
        part = own.mean()
        out_targets[i] = part * targets[i] + (1 - part) * targets[i ^ 1]
    return out, out_targets


def reference(model, settings):
    """Loss and gradients of the first global batch."""
    images, labels = global_batch()
    model = copy.deepcopy(model).double()
    pixels = ((images.double() / 255 - MEAN) / STD).permute(0, 3, 1, 2)
    targets = torch.zeros(BATCH, CLASSES, dtype=torch.float64)
    for row, numbers in zip(targets, labels.tolist(), strict=True):
        row[[number for number in numbers if number >= 0]] = 1
    seed = scramble(scramble(settings.seed) ^ 0)
    draws = mixing_draws(settings.mix, seed=seed, first=0, count=BATCH)
    pixels, targets = mixed(pixels, targets, draws)
    losses = map(LOSSES[settings.loss.name], model(pixels), targets)
    loss = sum(one for one, own in zip(losses, labels, strict=True) if own[0] >= 0) / BATCH
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters()}


def follows_the_formulas(loss, parallel, *, compiled=False):
    """One step of all ranks: loss, gradients, clipping, AdamW and average."""
    settings = config(loss, parallel, compile=compiled)
    # the same initial weights, outside of any wrapper
    plain = copy.deepcopy(make(config(loss)).model)
    for p in plain.parameters():
        p.grad = None
    expected, gradients = reference(plain, settings)
    close = partial(torch.testing.assert_close, rtol=1e-4, atol=2e-6)

    state = make(settings)
    before = named(state.model)
    for name, p in plain.named_parameters():
        close(before[name], p.detach(), msg=name)
    backward(state, own_batch(), share(), dist.get_world_size())
    for name, found in named(state.model, lambda p: p.grad).items():
        close(found.double(), gradients[name], msg=lambda text, name=name: f"{name}: {text}")

    state = make(settings)
    norm, total, bad, *_ = step(state).tolist()
    close(total / dist.get_world_size(), expected, rtol=1e-5, atol=0)
    expected_norm = sum(g.square().sum() for g in gradients.values()).sqrt().item()
    close(norm, expected_norm, rtol=1e-5, atol=0)
    assert bad == 0 and norm > settings.optim.clip_norm
    decays = {p: g["weight_decay"] for g in state.optimizer.param_groups for p in g["params"]}
    for name, p in state.model.named_parameters():
        gradient = gradients[name] * settings.optim.clip_norm / norm
        first = before[name].double()
        update = gradient / (gradient.abs() + settings.optim.eps) + decays[p] * first
        expected = first - LR * update
        close(whole(p).double(), expected, rtol=1e-5, atol=1e-7, msg=name)
        average = first + 0.9 * (expected - first)  # the first decay is 1 / 10
        found = whole(state.ema.weights[name]).double()
        close(found, average, rtol=1e-5, atol=1e-7, msg=name)


def bfloat16(parallel, residual):
    """Loss and gradients of a step in bfloat16."""
    settings = config(parallel=parallel, precision="bf16", residual=residual)
    # with the parts whose weights autocast leaves in float32
    state = make(settings.replace({"model.layer_scale": 0.1, "model.qk_norm": True}))
    loss = backward(state, own_batch(), share(), dist.get_world_size())
    return loss, named(state.model, lambda p: p.grad)


def ddp_and_fsdp_compute_the_same_bits(residual):
    (loss, gradients), (other, others) = bfloat16("ddp", residual), bfloat16("fsdp", residual)
    assert torch.equal(loss, other), (loss, other)
    for name, gradient in gradients.items():
        assert torch.equal(gradient, others[name]), name
    state = make(config(precision="fp32"))
    exact = backward(state, own_batch(), share(), dist.get_world_size())
    assert not torch.equal(loss, exact)  # it was bfloat16


def passes_of_unequal_shares():
    """Shares of 2 and 4 images in passes of 2, with dropout: sharded models compute together."""
    images, labels = global_batch()
    own = RankShare.of(dist.get_rank(), 2, 6)
    rows = slice(own.low, own.high)
    batch = Batch(images=images[rows], labels=labels[rows], keys=np.empty(0), faults=[])
    losses, gradients = {}, {}
    for parallel in ("ddp", "fsdp"):
        settings = config(parallel=parallel, micro_batch=2, global_batch=6)
        state = make(settings.replace({"model.dropout": 0.3, "model.drop_path": 0.3}))
        losses[parallel] = backward(state, batch, own, dist.get_world_size())
        gradients[parallel] = named(state.model, lambda p: p.grad)
    assert torch.equal(losses["ddp"], losses["fsdp"])
    for name, gradient in gradients["ddp"].items():
        torch.testing.assert_close(gradients["fsdp"][name], gradient, msg=name)


def join(rank, world, meet, backend="gloo"):
    torch.set_num_threads(1)
    dist.init_process_group(backend, init_method=f"file://{meet}", rank=rank, world_size=world)


def two(rank, meet):
    """All checks on two ranks."""
    join(rank, 2, meet)
    for parallel in ("ddp", "fsdp"):
        for loss in LOSSES:
            follows_the_formulas(loss, parallel)
    for residual in ("fp32", "bf16"):
        ddp_and_fsdp_compute_the_same_bits(residual)
    passes_of_unequal_shares()
    dist.barrier()
    dist.destroy_process_group()


def dropped(world, rank, **changes):
    """Loss and gradients of one rank of a world, in passes of 4, with dropout."""
    settings = config(**changes)
    settings = settings.replace({"model.dropout": 0.3, "model.drop_path": 0.3})
    own = RankShare.of(rank, world, BATCH)
    images, labels = (column[own.low : own.high] for column in global_batch())
    state = make(settings)
    batch = Batch(images=images, labels=labels, keys=np.empty(0), faults=[])
    loss = backward(state, batch, own, world)
    return loss / world, {
        name: g / world for name, g in named(state.model, lambda p: p.grad).items()
    }


def two_compiled(rank, meet):
    """The compiled step on two ranks, whose gradients are reduced in buckets or by shards."""
    join(rank, 2, meet)
    for parallel in ("ddp", "fsdp"):
        follows_the_formulas("softmax", parallel, compiled=True)
    dist.barrier()
    dist.destroy_process_group()


def job():
    """As much of a job as the message about a loss needs."""
    shard = SimpleNamespace(name="train-00000.tar")
    return SimpleNamespace(
        config=config(),
        order=SimpleNamespace(spans=lambda *ends: SimpleNamespace(slice=[0])),
        train=SimpleNamespace(slices=SimpleNamespace(shard=np.zeros(1, int)), shards=[("", shard)]),
        folder=SimpleNamespace(location="runs/run"),
    )
