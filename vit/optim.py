"""Optimizers and schedules: parameter groups, optimizers, learning rate and moving average.

    make_optimizer(model, config); each step: learning_rate(config, step, ...), set_learning_rate,
    backward, apply_gradients, Ema.update

The learning rate is a pure function of the step, so a checkpoint does not store it. As in the
reference, only kernels decay (dense layers, patch embedding, head); biases, norms, positions, the
class token and the query of the attention pool do not.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import cos, pi

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vit.config import OptimConfig
from vit.registry import OPTIMIZERS, resolve
from vit.sharded import local

NO_DECAY = {"pos_embed", "cls_token", "reg_token", "attn_pool.latent"}
FUSED = {"cpu", "cuda", "mps", "xpu"}  # devices with fused optimizers in PyTorch


def make_optimizer(model: nn.Module, config: OptimConfig) -> Optimizer:
    """Create the optimizer of a ViT, which may be wrapped by DDP, FSDP2 or torch.compile."""
    return resolve(OPTIMIZERS[config.name].function)(parameter_groups(model, config), config)


def sgd(groups: list[dict], config: OptimConfig) -> Optimizer:
    """Momentum SGD, fused."""
    return FusedSGD(groups, lr=config.lr, momentum=config.momentum)


def adamw(groups: list[dict], config: OptimConfig) -> Optimizer:
    """AdamW, fused if the device supports it."""
    fused = groups[0]["params"][0].device.type in FUSED
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)


def adamw8bit(groups: list[dict], config: OptimConfig) -> Optimizer:
    """AdamW with one-byte moments; raises ValueError if the extra "quant" is not installed."""
    try:
        from vit.adamw8bit import AdamW8bit
    except ModuleNotFoundError as error:
        if error.name != "torchao":
            raise
        raise ValueError(
            "optim.name is adamw8bit, but torchao is not installed; choose adamw, or install the"
            " extra: pip install 'vit-pretraining[quant]'"
        ) from error
    return AdamW8bit(groups, lr=config.lr, betas=config.betas, eps=config.eps)


def parameter_groups(model: nn.Module, config: OptimConfig) -> list[dict]:
    """Group parameters by decay and depth; `lr_scale` is a group's multiple of the learning rate.

    PyTorch's AdamW removes lr x weight_decay. For a decay that is independent of the peak learning
    rate (big_vision's), the group's weight_decay is divided by the peak, which leaves lr / peak.
    """
    named = {plain_name(name): p for name, p in model.named_parameters() if p.requires_grad}
    last = 2 + max(int(name.split(".")[1]) for name in named if name.startswith("blocks."))
    groups: dict[tuple[float, bool], dict] = {}
    for name, parameter in named.items():
        scale = config.layer_decay ** (last - layer_number(name, last))
        decays = parameter.ndim > 1 and name not in NO_DECAY
        lr, decay = config.lr * scale, config.weight_decay if decays else 0.0
        if not config.decay_scaled_by_lr:
            decay /= lr
        settings = {"lr": lr, "lr_scale": scale, "weight_decay": decay}
        groups.setdefault((scale, decays), {"params": [], **settings})["params"].append(parameter)
    return list(groups.values())


def layer_number(name: str, last: int) -> int:
    """Layer of a parameter: 0 for the embeddings, i + 1 for block i, `last` for all above."""
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return 0 if name.startswith(("patch_embed", "pos_embed", "cls_token", "reg_token")) else last


def plain_name(name: str) -> str:
    """A parameter's name without the prefixes that DDP and torch.compile add."""
    return re.sub(r"(^|\.)(module|_orig_mod)(?=\.)", "", name).removeprefix(".")


def learning_rate(
    config: OptimConfig,
    step: int,
    total_steps: int,
    *,
    global_batch: int | None = None,
    examples_per_epoch: int | None = None,
) -> float:
    """Learning rate of a step, as in both reference codebases.

    The schedule runs from lr to final_lr between the end of the warm-up and the end of the run.
    The warm-up scales it by step / warm-up steps, so that the first step has rate 0 (or warmup_lr),
    and the cooldown by the share of its steps that remain.

    Steps count from 0. A length in examples requires global_batch, one in epochs both arguments.
    """
    unit_steps = {"steps": 1.0, "fraction": float(total_steps)}
    if global_batch:
        unit_steps["examples"] = 1 / global_batch
        if examples_per_epoch:
            unit_steps["epochs"] = examples_per_epoch / global_batch
    ramps = (ramp_steps(config, name, unit_steps, total_steps) for name in ("warmup", "cooldown"))
    warmup, cooldown = ramps
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


def ramp_steps(
    config: OptimConfig, name: str, unit_steps: Mapping[str, float], total_steps: int
) -> int:
    """Steps of the "warmup" or "cooldown": rounded, but at least 1 unless its length is 0.

    Raises ValueError if the steps of its unit are unknown, or if the warm-up is not shorter than
    the run.
    """
    length, unit = getattr(config, name), getattr(config, f"{name}_unit")
    if not length:
        return 0
    if unit not in unit_steps:
        raise ValueError(
            f"{name} is {length:g} {unit}: its steps depend on the batch and the data; pass"
            " global_batch" + (" and examples_per_epoch" if unit == "epochs" else "")
        )
    steps = max(1, round(length * unit_steps[unit]))
    if name == "warmup" and total_steps > 1 and steps >= total_steps:
        raise ValueError(
            f"warmup is {steps} steps ({length:g} {unit}), but the run has {total_steps}; shorten"
            " it or train longer"
        )
    return steps


def apply_gradients(
    optimizer: Optimizer, norm: Tensor, clip_norm: float | None, skip: Tensor
) -> None:
    """Clip the gradients to a norm and apply them, all on the device.

    Clipping and skipping are part of the optimizer's kernel, which writes the clipped gradients
    back. An optimizer without such a kernel, as PyTorch marks it, costs a wait for the device.

    Args:
        optimizer: Any of `make_optimizer`.
        norm: Norm of the gradients, a scalar.
        clip_norm: Largest norm; None or 0 does not clip.
        skip: 1.0 leaves weights and moments as they are, else 0.0; a scalar.
    """
    scale = ((norm + 1e-6) / clip_norm).clamp(min=1.0) if clip_norm else None
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.grad_scale, optimizer.found_inf = scale, skip
        optimizer.step()
    elif not skip.item():
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if scale is not None:
            torch._foreach_div_([local(p.grad) for p in parameters if p.grad is not None], scale)
        optimizer.step()


class FusedSGD(torch.optim.SGD):
    """Momentum SGD whose fused kernel also updates the shards of FSDP2."""

    _step_supports_amp_scaling = True

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update all parameters; each rank its own shards."""
        if closure is not None:
            raise ValueError("FusedSGD does not take a closure; compute the loss before step()")
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            moments = []
            if group["momentum"]:
                for parameter in parameters:
                    state = self.state[parameter]
                    if state.get("momentum_buffer") is None:
                        state["momentum_buffer"] = torch.zeros_like(parameter)
                    moments.append(local(state["momentum_buffer"]))
            torch._fused_sgd_(
                [local(p.detach()) for p in parameters],
                [local(p.grad) for p in parameters],
                moments,
                weight_decay=group["weight_decay"],
                momentum=group["momentum"],
                lr=group["lr"],
                dampening=group["dampening"],
                nesterov=group["nesterov"],
                maximize=group["maximize"],
                is_first_step=False,
                grad_scale=getattr(self, "grad_scale", None),
                found_inf=getattr(self, "found_inf", None),
            )


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Set each group's rate to its multiple of the learning rate; call before every step."""
    for group in optimizer.param_groups:
        value = lr * group["lr_scale"]
        if isinstance(group["lr"], Tensor):  # 8-bit AdamW requires a tensor
            group["lr"].fill_(value)
        else:
            group["lr"] = value


class Ema:
    """Exponential moving average of a model's weights.

    Update n uses the decay min(decay, (1 + n) / (10 + n)), so that the initial weights lose their
    influence quickly.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.weights = {plain_name(n): p.detach().clone() for n, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, skip: Tensor | None = None) -> None:
        """Move the average towards the model's weights; call after the optimizer's step.

        It stays if `skip`, a scalar on the device, is 1.0; the update is counted nevertheless.
        """
        share = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        if skip is not None:
            share = (1 - skip) * share
        # in the order of the model's parameters, as the averages were made
        averages = [local(average) for average in self.weights.values()]
        changes = torch._foreach_sub([local(p.detach()) for p in model.parameters()], averages)
        torch._foreach_mul_(changes, share)
        torch._foreach_add_(averages, changes)
        self.updates += 1

    @contextmanager
    def swapped_into(self, model: nn.Module) -> Iterator[None]:
        """Give the model the averaged weights for the duration of a with block."""
        self.swap(model)
        try:
            yield
        finally:
            self.swap(model)

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchange the model's weights with the averaged weights."""
        for name, parameter in model.named_parameters():
            average = self.weights[plain_name(name)]
            current = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(current)

    def state_dict(self) -> dict:
        """State for a checkpoint: the averages by parameter name, and the number of updates."""
        return {"weights": self.weights, "updates": self.updates}

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        """Restore the state from a checkpoint of the same model."""
        if state["weights"].keys() != self.weights.keys():
            unshared = sorted(state["weights"].keys() ^ self.weights.keys())
            raise ValueError(
                f"the moving average is of another model: {unshared[0]} and {len(unshared) - 1}"
                " other parameters are not in both; restart the average with ema=None"
            )
        for name, average in self.weights.items():
            average.copy_(state["weights"][name])
        self.updates = state["updates"]
