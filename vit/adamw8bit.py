"""AdamW whose two moments take one byte each, by torchao; for single GPUs, DDP and FSDP2.

Needs the optional extra "quant". States are block-wise quantised (arXiv 2110.02861): a byte for
each value, a float for each 256.
"""

import torch
import torchao.optim
from torch import Tensor
from torch.distributed.tensor import DTensor
from torchao.optim.adam import single_param_adam

# one kernel per shape, instead of a pass over memory for each of its thirty operations
update = torch.compile(single_param_adam, fullgraph=True, dynamic=False)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class AdamW8bit(torchao.optim.AdamW8bit):
    """torchao's, but each rank steps on its own shards.

    torchao compiles its step on the sharded tensors, and then silently never moves a parameter
    whose first axis is 1, such as the class token and the positions of a ViT. The update is
    elementwise and its blocks lie within a shard, so the shards alone give the same numbers.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update; the learning rate of a group is a tensor, to be filled."""
        if closure is not None:
            raise ValueError("AdamW8bit takes no closure; compute the loss before step()")
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
            return  # another rank has all of it
        update(
            local(parameter.detach()),
            local(parameter.grad),
            state["step"],
            local(state["exp_avg"]),
            local(state["exp_avg_sq"]),
            None,
            group["lr"],
            *group["betas"],
            group["weight_decay"],
            group["eps"],
            self.is_adamw,
            False,
        )
