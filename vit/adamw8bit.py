"""AdamW with 8-bit moments, based on torchao; for single GPUs, DDP and FSDP2.

Needs the optional extra "quant". Moments are quantised in blocks (arXiv 2110.02861): one byte per
value and one float per 256 values.
"""

import torch
import torchao.optim
from torch import Tensor
from torch.distributed.tensor import DTensor
from torchao.optim.adam import single_param_adam

# one kernel per shape instead of about thirty passes over memory
update = torch.compile(single_param_adam, fullgraph=True, dynamic=False)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; other tensors unchanged."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class AdamW8bit(torchao.optim.AdamW8bit):
    """torchao's AdamW8bit, except that each rank updates its own shards.

    torchao compiles its step on the sharded tensors, which silently never updates a parameter
    whose first axis is 1, such as the class token and the positions of a ViT. The update is
    elementwise and its blocks lie within a shard, so updating the shards gives the same result.
    """

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
        """Update one parameter and its state."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = self._new_buffer(parameter, True)
            state["exp_avg_sq"] = self._new_buffer(parameter, False)
        state["step"] += 1
        if not local(parameter).numel():
            return  # this rank has no part of it
        tensors = local(parameter.detach()), local(parameter.grad), state["step"]
        moments = local(state["exp_avg"]), local(state["exp_avg_sq"]), None
        settings = group["lr"], *group["betas"], group["weight_decay"], group["eps"]
        update(*tensors, *moments, *settings, self.is_adamw, False)
