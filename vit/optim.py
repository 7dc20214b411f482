"""Optimizers and schedules: parameter groups, optimizers, learning rate and moving average.

    make_optimizer(model, config); each step: learning_rate(config, step, ...), set_learning_rate,
    backward, clip, optimizer.step(), Ema.update

The learning rate is a pure function of the step: nothing of it is stored in a checkpoint. Only
kernels decay (matrices: dense, patch embedding, head), as in the reference; not biases, norms,
positions, class token or the query of the attention pool.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from math import cos, pi

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vit.config import OptimConfig
from vit.registry import OPTIMIZERS, resolve

NO_DECAY = {"pos_embed", "cls_token", "attn_pool.latent"}
FUSED = {"cpu", "cuda", "mps", "xpu"}  # devices with PyTorch's one-kernel optimizers


def make_optimizer(model: nn.Module, config: OptimConfig) -> Optimizer:
    """The optimizer of a ViT, bare or wrapped (DDP, FSDP2, compiled)."""
    return resolve(OPTIMIZERS[config.name].function)(parameter_groups(model, config), config)


def sgd(groups: list[dict], config: OptimConfig) -> Optimizer:
    """Momentum SGD; not fused, because PyTorch's kernel refuses FSDP2's shards."""
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)


def adamw(groups: list[dict], config: OptimConfig) -> Optimizer:
    """AdamW, by one fused kernel where the device has it."""
    fused = groups[0]["params"][0].device.type in FUSED
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)


def adamw8bit(groups: list[dict], config: OptimConfig) -> Optimizer:
    """AdamW with moments of one byte; ValueError without the extra "quant"."""
    try:
        from vit.adamw8bit import AdamW8bit
    except ModuleNotFoundError as error:
        if error.name != "torchao":
            raise
        raise ValueError(
            "optim.name is adamw8bit, but torchao is not installed; install the extra: pip "
            "install 'vit-pretraining[quant]', or choose adamw"
        ) from error
    return AdamW8bit(groups, lr=config.lr, betas=config.betas, eps=config.eps)


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict]:
    """Groups by decay and depth; each carries `lr_scale`, its multiple of the learning rate.

    PyTorch's AdamW removes lr x weight_decay. For a decay that does not follow the peak learning
    rate (big_vision's), the group's value is divided by that peak once: lr / peak is what remains.
    """
    named = {plain_name(name): p for name, p in model.named_parameters() if p.requires_grad}
    depth = 1 + max(int(name.split(".")[1]) for name in named if name.startswith("blocks."))
    groups: dict[tuple[float, bool], dict] = {}
    for name, parameter in named.items():
        scale = config.layer_decay ** (depth + 1 - layer_number(name, depth))
        decays = parameter.ndim > 1 and name not in NO_DECAY
        if (scale, decays) not in groups:
            decay = config.weight_decay if decays else 0.0
            if not config.decay_scaled_by_lr:
                decay /= config.lr * scale
            settings = {"lr": config.lr * scale, "lr_scale": scale, "weight_decay": decay}
            groups[scale, decays] = {"params": [], **settings}
        groups[scale, decays]["params"].append(parameter)
    return list(groups.values())


def layer_number(name: str, depth: int) -> int:
    """Place in the stack: 0 for the embeddings, i + 1 for block i, depth + 1 for all above."""
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return 0 if name.startswith(("patch_embed", "pos_embed", "cls_token")) else depth + 1


def plain_name(name: str) -> str:
    """A parameter's name without what DDP and torch.compile put before it."""
    return re.sub(r"(^|\.)(module|_orig_mod)(?=\.)", "", name).removeprefix(".")


def learning_rate(
    config: OptimConfig,
    step: int,
    total_steps: int,
    *,
    global_batch: int | None = None,
    examples_per_epoch: int | None = None,
) -> float:
    """Learning rate of a step, 0 <= step < total_steps.

    The formulas of both reference codebases: with p the share of the way from the end of the
    warm-up to the end, a cosine or line from lr to final_lr, times step / warm-up steps, times
    what remains of the cooldown; so the first step of a warm-up has rate 0 (or warmup_lr).

    Args:
        config: Peak, course and lengths.
        step: Counted from 0.
        total_steps: Steps of the whole run.
        global_batch: Images per step; needed where a length is in epochs or examples.
        examples_per_epoch: Images of an epoch; needed where a length is in epochs.
    """
    warmup, cooldown = ramps(config, total_steps, global_batch, examples_per_epoch)
    lr, end = config.lr, config.final_lr
    progress = min(max((step - warmup) / max(total_steps - warmup, 1), 0.0), 1.0)
    if config.schedule == "cosine":
        lr = end + (lr - end) * 0.5 * (1 + cos(pi * progress))
    elif config.schedule == "linear":
        lr = end + (lr - end) * (1 - progress)
    elif config.schedule == "rsqrt":
        lr /= (1 + max(step - warmup, 0) / config.rsqrt_timescale) ** 0.5
    if step < warmup:
        lr = config.warmup_lr + (lr - config.warmup_lr) * step / warmup
    return lr * min(1.0, (total_steps - step) / cooldown) if cooldown else lr


def ramps(
    config: OptimConfig,
    total_steps: int,
    global_batch: int | None = None,
    examples_per_epoch: int | None = None,
) -> tuple[int, int]:
    """Steps of the warm-up and of the cooldown; ValueError if they do not fit into the run."""
    per_epoch = examples_per_epoch / global_batch if examples_per_epoch and global_batch else None
    per_unit = {
        "steps": 1.0,
        "fraction": float(total_steps),
        "examples": 1 / global_batch if global_batch else None,
        "epochs": per_epoch,
    }
    warmup = duration("warmup", config.warmup, config.warmup_unit, per_unit)
    cooldown = duration("cooldown", config.cooldown, config.cooldown_unit, per_unit)
    if total_steps > 1 and warmup >= total_steps:
        raise ValueError(
            f"warmup is {warmup} steps ({config.warmup:g} {config.warmup_unit}), but the run has"
            f" {total_steps}; shorten it or train longer"
        )
    return warmup, cooldown


def duration(name: str, value: float, unit: str, per_unit: dict[str, float | None]) -> int:
    """Steps in a length: rounded to the nearest, but at least 1 unless it is 0."""
    if not value:
        return 0
    steps = per_unit[unit]
    if steps is None:
        raise ValueError(
            f"{name} is {value:g} {unit}: its steps depend on the batch and the data; pass"
            " global_batch" + (" and examples_per_epoch" if unit == "epochs" else "")
        )
    return max(1, round(value * steps))


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Give each group its multiple of the learning rate; call before every step."""
    for group in optimizer.param_groups:
        value = lr * group["lr_scale"]
        if isinstance(group["lr"], Tensor):  # 8-bit AdamW reads a tensor and refuses a float
            group["lr"].fill_(value)
        else:
            group["lr"] = value


class Ema:
    """Exponential moving average of a model's weights.

    The first updates average over fewer steps, decay min(decay, (1 + n) / (10 + n)), so that the
    initial weights are forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.weights = {plain_name(n): p.detach().clone() for n, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the model's weights; call after the optimizer's step."""
        share = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        current = {plain_name(name): p.detach() for name, p in model.named_parameters()}
        torch._foreach_lerp_(
            list(self.weights.values()), [current[name] for name in self.weights], share
        )
        self.updates += 1

    @contextmanager
    def swapped_into(self, model: nn.Module) -> Iterator[None]:
        """Within the block the model has the averaged weights, after it its own again."""
        self.swap(model)
        try:
            yield
        finally:
            self.swap(model)

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchange the model's weights and the averaged ones."""
        for name, parameter in model.named_parameters():
            average = self.weights[plain_name(name)]
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)

    def state_dict(self) -> dict:
        """What a checkpoint holds: the averages by parameter name, and the count of updates."""
        return {"weights": self.weights, "updates": self.updates}

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        """Go on from a checkpoint of the same model."""
        if state["weights"].keys() != self.weights.keys():
            odd = sorted(state["weights"].keys() ^ self.weights.keys())
            raise ValueError(
                f"the moving average is of another model: {odd[0]} and {len(odd) - 1}"
                " other parameters are not in both; start it anew with ema=None"
            )
        for name, average in self.weights.items():
            average.copy_(state["weights"][name])
        self.updates = state["updates"]
