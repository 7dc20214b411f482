"""LAMB: the formula of apex's FusedLAMB in float64, skipped steps, and shards of FSDP2."""

import math
from functools import partial
from pathlib import Path

import pytest
import sharded_ranks
import step_ranks
import torch
import torch.distributed as dist
from processes import run_ranks
from waits import Waits

from vit.config import OptimConfig
from vit.lamb import Lamb
from vit.optim import apply_gradients
from vit.registry import OPTIMIZERS

LR, DECAY, EPS, CLIP = 2e-2, 0.1, 1e-4, 1.0
SPLITS = ("ddp", "fsdp")
SHAPES = ((4, 6), (3, 5), (1, 1, 6), (7,))  # of which the last two do not decay
close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-7)


pytestmark = pytest.mark.usefixtures("one_thread")


def parameters():
    """Weights; the second matrix is zero, as a new head is."""
    draw = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=draw) for shape in SHAPES]
    values[1].zero_()
    return [torch.nn.Parameter(value) for value in values]


def optimizer_of(weights):
    groups = [
        {"params": weights[:2], "lr": LR, "lr_scale": 1.0, "weight_decay": DECAY},
        {"params": weights[2:], "lr": LR, "lr_scale": 1.0, "weight_decay": 0.0},
    ]
    return Lamb(groups, (0.9, 0.999), EPS)


def gradients(step):
    """Gradients of a step, whose norm is above CLIP."""
    draw = torch.Generator().manual_seed(1 + step)
    return [torch.randn(shape, generator=draw) for shape in SHAPES]


def norm_of(tensors):
    return math.sqrt(sum(tensor.double().square().sum().item() for tensor in tensors))


def apexs_steps(weights, count, lr=LR, clip=CLIP):
    """csrc/multi_tensor_lamb.cu of NVIDIA's apex, mode 1 without use_nvlamb, in float64."""
    weights = [weight.detach().double() for weight in weights]
    first, second = ([torch.zeros_like(w) for w in weights] for _ in range(2))
    for step in range(1, count + 1):
        given = [g.double() for g in gradients(step)]
        total = norm_of(given)
        for i, w in enumerate(weights):
            g = given[i] / (total / clip if total > clip else 1)
            first[i] = 0.9 * first[i] + (1 - 0.9) * g
            second[i] = 0.999 * second[i] + (1 - 0.999) * g * g
            m, v = first[i] / (1 - 0.9**step), second[i] / (1 - 0.999**step)
            decay = DECAY if i < 2 else 0.0
            update = m / (v.sqrt() + EPS) + decay * w
            ratio = lr
            if decay and update.norm() and w.norm():
                ratio = lr * w.norm() / update.norm()
            weights[i] = w - ratio * update
    return weights


def take_steps(optimizer, weights, numbers, skip=0.0):
    for number in numbers:
        for weight, gradient in zip(weights, gradients(number), strict=True):
            weight.grad = gradient.clone()
        norm = torch.tensor(norm_of([weight.grad for weight in weights]))
        apply_gradients(optimizer, norm, CLIP, torch.tensor(skip))


def test_steps_are_those_of_apexs_formula():
    weights = parameters()
    expected = apexs_steps(weights, 5)
    take_steps(optimizer_of(weights), weights, range(1, 6))
    for weight, value in zip(weights, expected, strict=True):
        close(weight.detach().double(), value)


def test_clipping_to_a_norm_of_1_is_that_of_the_settings():
    """FusedLAMB of apex clips by itself; here the settings do."""
    weights, unclipped = parameters(), parameters()
    take_steps(optimizer_of(weights), weights, range(1, 4))
    optimizer = optimizer_of(unclipped)
    for number in range(1, 4):
        for weight, gradient in zip(unclipped, gradients(number), strict=True):
            weight.grad = gradient
        apply_gradients(optimizer, torch.tensor(1e9), None, torch.tensor(0.0))
    for weight, other, value in zip(
        weights, unclipped, apexs_steps(parameters(), 3, clip=1e9), strict=True
    ):
        close(other.detach().double(), value)
        assert not torch.allclose(weight, other, atol=1e-5)


def test_a_matrix_moves_by_its_own_norm_and_what_does_not_decay_as_in_adam():
    weights = parameters()
    before = [weight.detach().clone() for weight in weights]
    take_steps(optimizer_of(weights), weights, [1])
    moved = [(weight - old).norm().item() for weight, old in zip(weights, before, strict=True)]
    assert moved[0] == pytest.approx(LR * before[0].norm().item(), rel=1e-5)
    # the first step of Adam is close to the sign; a ratio of 1 where there is no norm
    for i in (1, 2, 3):
        assert moved[i] == pytest.approx(LR * math.sqrt(before[i].numel()), rel=0.05)


def test_a_skipped_step_changes_no_bit():
    weights = parameters()
    optimizer = optimizer_of(weights)
    take_steps(optimizer, weights, [1, 2])
    before = [weight.detach().clone() for weight in weights]
    states = [{k: v.clone() for k, v in optimizer.state[w].items()} for w in weights]
    for weight in weights:
        weight.grad = torch.full_like(weight, torch.nan)
    apply_gradients(optimizer, torch.tensor(torch.nan), CLIP, torch.tensor(1.0))
    for weight, old, state in zip(weights, before, states, strict=True):
        assert torch.equal(weight, old)
        assert state["step"] == 2
        for key, value in state.items():
            assert torch.equal(optimizer.state[weight][key], value), key
    take_steps(optimizer, weights, [3])
    for weight, value in zip(weights, apexs_steps(parameters(), 3), strict=True):
        close(weight.detach().double(), value)


def test_parameters_without_gradients_stay():
    weights = parameters()
    optimizer = optimizer_of(weights)
    weights[0].grad = torch.ones_like(weights[0])
    optimizer.step()
    assert all(torch.equal(w, old) for w, old in zip(weights[1:], parameters()[1:], strict=True))
    for weight in weights:
        weight.grad = None
    optimizer.step()
    assert list(optimizer.state) == weights[:1]
    with pytest.raises(ValueError, match="closure"):
        optimizer.step(lambda: 0.0)


def test_a_saved_state_continues_to_the_bit(tmp_path):
    whole, weights = parameters(), parameters()
    take_steps(optimizer_of(whole), whole, range(1, 7))
    optimizer = optimizer_of(weights)
    take_steps(optimizer, weights, range(1, 4))
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    again = optimizer_of(weights)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    take_steps(again, weights, range(4, 7))
    assert all(torch.equal(one, other) for one, other in zip(weights, whole, strict=True))


def test_its_state_is_two_floats_a_parameter():
    weights = parameters()
    optimizer = optimizer_of(weights)
    take_steps(optimizer, weights, [1])
    moments = [v for w in weights for k, v in optimizer.state[w].items() if k != "step"]
    count = sum(weight.numel() for weight in weights)
    assert sum(v.numel() * v.element_size() for v in moments) == 8 * count
    assert OPTIMIZERS["lamb"].state_bytes == 8


def test_the_decay_cannot_be_independent_of_the_rate():
    with pytest.raises(ValueError, match="must be true for lamb"):
        OptimConfig(name="lamb", decay_scaled_by_lr=False)


# --------------------------------------------------------------------- a training run


def test_the_host_never_waits_for_the_device(alone):
    state = step_ranks.make(step_ranks.config(optimizer="lamb"))
    step_ranks.step(state)
    with Waits() as waits:
        for number in range(1, 5):
            step_ranks.step(state, number)
    assert waits.all > 1000 and waits.counts == {}


def shards_take_the_steps_of_whole_parameters():
    """Two steps, of which the second starts from other moments, and a skipped one."""
    states = [step_ranks.make(step_ranks.config(parallel=p, optimizer="lamb")) for p in SPLITS]
    for number in range(2):
        for state in states:
            step_ranks.step(state, number)
    whole, sharded = (step_ranks.named(state.model) for state in states)
    for name, value in whole.items():
        close(sharded[name], value, msg=lambda text, name=name: f"{name}: {text}")
    for state in states:
        before = step_ranks.named(state.model)
        state.update(torch.tensor(torch.nan), torch.tensor(1.0))
        for name, value in step_ranks.named(state.model).items():
            assert torch.equal(value, before[name]), name


def checkpoints_hold_its_state(folder):
    """FSDP2 writes, FSDP2 and DDP read and go on alike."""
    state = sharded_ranks.make("fsdp", optimizer="lamb")
    sharded_ranks.train(state)
    sharded_ranks.save(state, folder)
    written, losses = sharded_ranks.values(state), sharded_ranks.train(state)
    for parallel in SPLITS:
        again = sharded_ranks.make(parallel, folder, optimizer="lamb")
        read = sharded_ranks.values(again)
        for number, values in written["optimizer"].items():
            assert {"step", "exp_avg", "exp_avg_sq"} == values.keys()
            for key, value in values.items():
                assert torch.equal(read["optimizer"][number][key], value), (parallel, key)
        close(torch.tensor(sharded_ranks.train(again)), torch.tensor(losses))


def two(rank, meet, folder):
    """All checks on two ranks."""
    step_ranks.join(rank, 2, meet)
    shards_take_the_steps_of_whole_parameters()
    checkpoints_hold_its_state(Path(folder))
    dist.barrier()
    dist.destroy_process_group()


def test_on_two_processes_norms_are_those_of_whole_parameters_and_checkpoints_hold(tmp_path):
    run_ranks(two, str(tmp_path / "meet"), str(tmp_path / "checkpoint"), count=2)
