"""LAMB (arXiv 1904.00962) as apex's FusedLAMB computes it; for single GPUs, DDP and FSDP2.

    u = m / (sqrt(v) + eps) + decay * w      m, v: AdamW's moments, with bias correction
    w = w - lr * |w| / |u| * u               the ratio is 1 without decay, or if a norm is 0

|.| is the norm of one parameter. apex also clips the gradients to a norm of 1 over all parameters;
here `optim.clip_norm` does.
"""

import torch
from torch import Tensor
from torch.optim import Optimizer

from vit.config import OptimConfig
from vit.sharded import local, norms


def lamb(groups: list[dict], config: OptimConfig) -> Optimizer:
    """LAMB, on devices with fused optimizers in PyTorch."""
    return Lamb(groups, config.betas, config.eps)


class Lamb(Optimizer):
    """LAMB; each rank updates its own shards, and norms are those of whole parameters.

    Needs memory of the size of the weights during a step. PyTorch's fused AdamW computes moments
    and their quotient, which is why `grad_scale` and `found_inf` mean the same here as there.
    """

    _step_supports_amp_scaling = True

    def __init__(self, groups: list[dict], betas: tuple[float, float], eps: float) -> None:
        # as of PyTorch's optimizers, `fused` keeps the number of steps on the device
        super().__init__(groups, {"betas": betas, "eps": eps, "fused": True})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update all parameters; the host does not wait for the device."""
        if closure is not None:
            raise ValueError("Lamb does not take a closure; compute the loss before step()")
        moves: list[tuple[dict, list[Tensor], list[Tensor]]] = []
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            moves.append((group, parameters, self.descents(group, parameters)))
        self.adapt([move for move in moves if move[0]["weight_decay"]])
        for group, parameters, descents in moves:
            weights = [local(p.detach()) for p in parameters]
            if weights:
                torch._foreach_add_(weights, descents, alpha=group["lr"])

    def descents(self, group: dict, parameters: list[Tensor]) -> list[Tensor]:
        """Update the moments; return -u of this rank's shards, without m if the step is skipped."""
        weights = [local(p.detach()) for p in parameters]
        descents = [torch.zeros_like(weight) for weight in weights]
        if not parameters:
            return descents
        states = [self.state[p] for p in parameters]
        for parameter, state in zip(parameters, states, strict=True):
            if not state:
                state["step"] = torch.zeros((), device=parameter.device)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        torch._fused_adamw_(
            descents,  # AdamW's step from zeros at a rate of 1
            [local(p.grad) for p in parameters],
            [local(state["exp_avg"]) for state in states],
            [local(state["exp_avg_sq"]) for state in states],
            [],
            steps,
            lr=1.0,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=0.0,
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
            grad_scale=getattr(self, "grad_scale", None),
            found_inf=self.skip,
        )
        if self.skip is not None:
            torch._foreach_sub_(steps, [self.skip] * len(steps))
        if group["weight_decay"]:
            torch._foreach_add_(descents, weights, alpha=-group["weight_decay"])
        return descents

    @property
    def skip(self) -> Tensor | None:
        """1.0 if this step changes nothing, else 0.0; None is 0.0."""
        return getattr(self, "found_inf", None)

    def adapt(self, moves: list[tuple[dict, list[Tensor], list[Tensor]]]) -> None:
        """Scale the descents of parameters that decay to the norm of their parameter."""
        parameters = [p for _, some, _ in moves for p in some]
        descents = [descent for _, _, some in moves for descent in some]
        if not parameters:
            return
        weights = [local(p.detach()) for p in parameters]
        # one reduction over the ranks for all of them
        sizes, lengths = norms([*weights, *descents], parameters[0]).chunk(2)
        ratios = torch.where((sizes > 0) & (lengths > 0), sizes / lengths, 1.0)
        if self.skip is not None:
            ratios = ratios * (1 - self.skip)  # else the weights would decay
        torch._foreach_mul_(descents, list(ratios.unbind()))
