"""A training step: the plain formulas, on one process and on two, and no wait for the device."""

import importlib.util
import os

import pytest
import step_ranks
import torch
import torch.distributed as dist
from processes import run_ranks
from torch._inductor import config as inductor
from waits import Waits

from pipeline.train.control import Control
from pipeline.train.outcomes import Outcomes
from pipeline.train.step import widened
from pipeline.train.transfer import to_device
from pipeline.train.worker import use_deterministic_kernels
from vit.optim import parameter_groups, set_learning_rate


def test_graphs_that_would_lose_gradients_between_passes_are_refused(alone):
    settings = step_ranks.config(compile=True, cuda_graphs=True, micro_batch=4)
    with pytest.raises(ValueError, match=r"20 images need passes of at most 4, and a graph keeps"):
        step_ranks.make(settings)


def test_the_width_of_labels_is_a_power_of_two():
    assert [widened(torch.zeros(2, width)).shape[1] for width in (1, 2, 3, 5)] == [1, 2, 4, 8]
    assert widened(torch.tensor([[4, 5, 6]])).tolist() == [[4, 5, 6, -1]]


@pytest.mark.parametrize("loss", step_ranks.LOSSES)
def test_a_step_follows_the_plain_formulas(alone, loss):
    step_ranks.follows_the_formulas(loss, "ddp")


def test_dropout_is_the_same_for_any_number_of_workers_and_size_of_passes(alone):
    (loss, gradients), (again, others) = (
        step_ranks.dropped(1, 0, micro_batch=size) for size in (20, 4)
    )
    torch.testing.assert_close(again, loss)
    shares = [step_ranks.dropped(3, rank) for rank in range(3)]
    torch.testing.assert_close(sum(loss for loss, _ in shares), loss)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, msg=name)
        summed = sum(part[name] for _, part in shares)
        torch.testing.assert_close(summed, gradient, msg=name)


@pytest.mark.compile
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("loss", step_ranks.LOSSES)
def test_a_compiled_step_follows_the_plain_formulas(alone, loss, parallel):
    step_ranks.follows_the_formulas(loss, parallel, compiled=True)


def test_on_two_processes_ddp_and_fsdp_follow_the_formulas_and_compute_the_same_bits(tmp_path):
    run_ranks(step_ranks.two, str(tmp_path / "meet"), count=2)


@pytest.mark.compile
def test_on_two_processes_a_compiled_step_follows_the_formulas(tmp_path):
    run_ranks(step_ranks.two_compiled, str(tmp_path / "meet"), count=2)


@pytest.fixture
def deterministic(monkeypatch):
    """Kernels that give the same bits, until the end of the test."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.setattr(inductor, "deterministic", False)
    use_deterministic_kernels()
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.backends.cuda.enable_mem_efficient_sdp(True)
    torch.backends.cuda.enable_cudnn_sdp(True)


@pytest.mark.parametrize("loss", step_ranks.LOSSES)
def test_each_operation_of_a_step_has_a_deterministic_kernel(alone, deterministic, loss):
    assert torch.are_deterministic_algorithms_enabled() and inductor.deterministic
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    first, second = (step_ranks.make(step_ranks.config(loss)) for _ in range(2))
    assert step_ranks.step(first).tolist() == step_ranks.step(second).tolist()
    for name, value in values(first).items():
        assert torch.equal(values(second)[name], value), name


def outcomes_of(state):
    control = Control(None, lambda: False, 1e9)
    return Outcomes(step_ranks.job(), state, None, control, 1)


def values(state):
    """Weights, moments, counts of updates and averages."""
    found = {f"model.{name}": value for name, value in step_ranks.named(state.model).items()}
    found |= {f"ema.{name}": value.clone() for name, value in state.ema.weights.items()}
    for number, tensors in enumerate(state.optimizer.state.values()):
        for key, tensor in tensors.items():
            if key != "step" or state.config.optim.name != "adamw8bit":  # the host counts these
                dense = tensor.dequantize() if hasattr(tensor, "codes") else tensor
                found[f"{number}.{key}"] = dense.clone()
    return found


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_host_never_waits_for_the_device_in_ten_steps(alone, optimizer):
    state = step_ranks.make(step_ranks.config(optimizer=optimizer))
    outcomes = outcomes_of(state)
    step_ranks.step(state)
    with Waits() as waits:
        for number in range(1, 11):
            outcomes.add(number + 1, step_ranks.step(state, number), [])
            outcomes.read(but=1)
    assert waits.all > 1000
    assert waits.counts == {}


def test_numbers_go_to_a_device_in_the_background():
    with Waits() as waits:
        to_device(torch.ones(2), torch.device("meta"))
    assert waits.all and waits.counts == {}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_pytorch_sees_no_wait_for_a_gpu_in_ten_steps(tmp_path, optimizer, compiled):
    device = torch.device("cuda")
    step_ranks.join(0, 1, tmp_path / "meet", "nccl")
    try:
        settings = step_ranks.config(optimizer=optimizer, precision="bf16", compile=compiled)
        state = step_ranks.make(settings, device)
        outcomes = outcomes_of(state)
        batches = [step_ranks.own_batch(number, device) for number in range(13)]
        for number in range(2):
            step_ranks.step(state, batch=batches[number])
        torch.cuda.set_sync_debug_mode("error")
        for number in range(2, 12):
            outcomes.add(number + 1, step_ranks.step(state, batch=batches[number]), [])
            outcomes.read(but=1)
        with pytest.raises(RuntimeError, match="synchroniz"):
            batches[12].images.sum().item()
    finally:
        torch.cuda.set_sync_debug_mode("default")
        dist.destroy_process_group()


def test_the_count_of_waits_notices_them():
    with Waits() as waits:
        torch.ones(()).item()
        torch.ones(3).nonzero()
        torch.ones(2).to("meta")
        torch.ones(2).to("meta", non_blocking=True)
    assert sum(waits.counts.values()) == 3


def without_a_kernel(state):
    """Give a state an optimizer that knows neither clipping nor skipping."""
    state.optimizer = torch.optim.AdamW(
        parameter_groups(state.model, state.config.optim),
        betas=state.config.optim.betas,
        eps=state.config.optim.eps,
    )
    set_learning_rate(state.optimizer, step_ranks.LR)


def test_an_optimizer_without_a_kernel_for_it_is_clipped_and_guarded_too(alone):
    fused, plain = (step_ranks.make(step_ranks.config()) for _ in range(2))
    without_a_kernel(plain)
    for number in range(2):
        step_ranks.step(fused, number)
        step_ranks.step(plain, number)
    expected = values(fused)
    for name, value in values(plain).items():
        torch.testing.assert_close(value, expected[name], msg=name)
    before = values(plain)
    plain.model.head.register_forward_hook(lambda module, given, logits: logits * torch.nan)
    step_ranks.step(plain, 2)
    assert all(torch.equal(value, before[name]) for name, value in values(plain).items())


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "adamw8bit"])
def test_a_loss_that_is_no_number_changes_nothing_and_is_told_one_step_later(alone, optimizer):
    if optimizer == "adamw8bit" and not importlib.util.find_spec("torchao"):
        pytest.skip("needs torchao")
    with torch.compiler.set_stance("force_eager"):
        state = step_ranks.make(step_ranks.config(optimizer=optimizer))
        outcomes = outcomes_of(state)
        poison = torch.tensor(1.0)
        state.model.head.register_forward_hook(lambda module, given, logits: logits * poison)
        for number in range(1, 4):
            outcomes.add(number, step_ranks.step(state, number), [])
            outcomes.read(but=1)
        before = values(state)
        poison.fill_(torch.nan)
        outcomes.add(4, step_ranks.step(state, 4), [])
        outcomes.read(but=1)  # of step 3
        after = values(state)
        assert len(before) > 60
        for name, value in before.items():
            assert torch.equal(after[name], value), name
        poison.fill_(1.0)
        outcomes.add(5, step_ranks.step(state, 5), [])
        assert any(not torch.equal(value, after[name]) for name, value in values(state).items())
        with pytest.raises(FloatingPointError, match=r"loss nan, gradient norm nan in step 4; "):
            outcomes.read(but=1)
