"""AdamW with 8-bit moments, based on torchao; for single GPUs, DDP and FSDP2.

Needs the optional extra "quant". Moments are quantised in blocks (arXiv 2110.02861): one byte per
value and one float per 256 values.
"""

from functools import partial

import torch
import torchao.optim
from torch import Tensor
from torchao.optim.quant_utils import quantize_8bit_with_qmap, scale_tensor

from vit.sharded import local


# one kernel per shape instead of about thirty passes over memory
@partial(torch.compile, fullgraph=True, dynamic=False)
def update(
    parameter: Tensor,
    gradient: Tensor,
    moments: tuple[Tensor, Tensor],
    step: Tensor,
    lr: Tensor,
    group: tuple[float, float, float, float],
    scale: Tensor | None,
    skip: Tensor | None,
) -> None:
    """Update one parameter; `scale` divides the gradient, and 1.0 in `skip` changes nothing."""
    first, second = (m.dequantize() if hasattr(m, "codes") else m for m in moments)
    beta1, beta2, weight_decay, eps = group
    if scale is not None:
        gradient = gradient / scale
    new_first = first.lerp(gradient, 1 - beta1)
    new_second = second.lerp(gradient.square(), 1 - beta2)
    deviation = new_second.sqrt() / (1 - beta2**step).sqrt() + eps
    new = parameter - lr * weight_decay * parameter
    new = new - lr * (new_first / (1 - beta1**step)) / deviation
    for moment, value in zip(moments, (new_first, new_second), strict=True):
        if hasattr(moment, "codes"):
            # requantising what has not changed would not give the same bytes
            scaled, scales = scale_tensor(value, moment.block_size)
            write(moment.codes, quantize_8bit_with_qmap(scaled, moment.qmap), skip)
            write(moment.scale, scales, skip)
        else:
            write(moment, value, skip)
    write(parameter, new, skip)


def write(old: Tensor, new: Tensor, skip: Tensor | None) -> None:
    """Write the new values over the old ones, unless `skip` is 1.0."""
    old.copy_(new if skip is None else torch.where(skip > 0, old, new.to(old.dtype)))


class AdamW8bit(torchao.optim.AdamW8bit):
    """torchao's AdamW8bit, except that each rank updates its own shards.

    torchao compiles its step on the sharded tensors, which silently never updates a parameter
    whose first axis is 1, such as the class token and the positions of a ViT. The update is
    elementwise and its blocks lie within a shard, so updating the shards gives the same result.
    """

    _step_supports_amp_scaling = True

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update all parameters; the learning rate of a group is a tensor."""
        if closure is not None:
            raise ValueError("AdamW8bit does not take a closure; compute the loss before step()")
        with torch._dynamo.utils.disable_cache_limit():
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        self.step_parameter(parameter, group)

    def step_parameter(self, parameter: Tensor, group: dict) -> None:
        """Update one parameter and its state; the host counts the step even if it is skipped."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = self._new_buffer(parameter, True)
            state["exp_avg_sq"] = self._new_buffer(parameter, False)
        state["step"] += 1
        if not local(parameter).numel():
            return  # this rank has no part of it
        update(
            local(parameter.detach()),
            local(parameter.grad),
            (local(state["exp_avg"]), local(state["exp_avg_sq"])),
            state["step"],
            group["lr"],
            (*group["betas"], group["weight_decay"], group["eps"]),
            getattr(self, "grad_scale", None),
            getattr(self, "found_inf", None),
        )
