"""Groups, schedules by the reference formulas, 8-bit moments, steps under DDP and FSDP2."""

import importlib.util
import math
import socket

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.fsdp import fully_shard

from vit.config import OptimConfig, ViTConfig
from vit.model import ViT
from vit.optim import Ema, learning_rate, make_optimizer, plain_name, set_learning_rate

pytestmark = pytest.mark.usefixtures("one_thread")


TINY = ViTConfig(
    image_size=32, patch_size=4, width=64, depth=2, mlp_width=128, heads=2, num_classes=10
)


def try_torchao():
    return pytest.importorskip("torchao", reason="8-bit AdamW needs the extra 'quant'")


# -------------------------------------------------------------------- schedules


def vt_schedule(step, total, base, decay, warmup, linear_end=1e-5):
    """google-research/vision_transformer, `utils.create_learning_rate_schedule`."""
    progress = min(max((step - warmup) / float(total - warmup), 0.0), 1.0)
    if decay == "linear":
        lr = linear_end + (base - linear_end) * (1.0 - progress)
    else:
        lr = base * 0.5 * (1.0 + math.cos(math.pi * progress))
    return lr * min(1.0, step / warmup) if warmup else lr


def bv_schedule(step, total, base, decay, warmup=0, cooldown=0, timescale=10_000):
    """big_vision, `utils.create_learning_rate_schedule`."""
    progress = min(max((step - warmup) / float(total - warmup), 0.0), 1.0)
    lr = base
    if decay == "linear":
        lr = lr * (1.0 - progress)
    elif decay == "cosine":
        lr = lr * 0.5 * (1.0 + math.cos(math.pi * progress))
    elif decay == "rsqrt" and step >= warmup:
        lr = lr / math.sqrt(1 + (step - warmup) / timescale)
    if warmup:
        lr = lr * min(1.0, step / warmup)
    if cooldown:
        lr = lr * min(1.0, (total - step) / cooldown)
    return lr


TOTAL, WARMUP = 90_000, 10_000
STEPS = [0, 1, WARMUP - 1, WARMUP, WARMUP + 1, TOTAL // 2, TOTAL - 1, TOTAL]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_schedules_equal_the_vision_transformer_formula(schedule, step):
    end = 1e-5 if schedule == "linear" else 0.0
    config = OptimConfig(schedule=schedule, warmup=WARMUP, warmup_unit="steps", final_lr=end)
    expected = vt_schedule(step, TOTAL, 1e-3, schedule, WARMUP)
    assert learning_rate(config, step, TOTAL) == pytest.approx(expected, rel=1e-12, abs=1e-18)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("cooldown", [0, 20_000])
@pytest.mark.parametrize("schedule", ["cosine", "linear", "rsqrt", "constant"])
def test_schedules_equal_the_big_vision_formula(schedule, cooldown, step):
    config = OptimConfig(
        schedule=schedule,
        warmup=WARMUP,
        warmup_unit="steps",
        cooldown=cooldown,
        cooldown_unit="steps",
    )
    expected = bv_schedule(step, TOTAL, 1e-3, schedule, WARMUP, cooldown)
    assert learning_rate(config, step, TOTAL) == pytest.approx(expected, rel=1e-12, abs=1e-18)


def test_first_step_has_rate_zero_and_the_warm_up_ends_at_the_peak():
    config = OptimConfig(lr=3e-3, warmup=10, warmup_unit="steps")
    assert learning_rate(config, 0, 100) == 0
    assert learning_rate(config, 10, 100) == 3e-3
    assert learning_rate(OptimConfig(warmup=0), 0, 100) == 1e-3
    almost = OptimConfig(lr=1e-3, warmup=10, warmup_unit="steps", warmup_lr=1e-6)
    assert learning_rate(almost, 0, 100) == 1e-6
    assert learning_rate(almost, 5, 100) == pytest.approx((1e-6 + 1e-3) / 2)


@pytest.mark.parametrize(
    "value, unit, steps",
    [(30, "steps", 30), (0.3, "fraction", 30), (3, "epochs", 30), (7_680, "examples", 30)],
)
def test_warm_up_is_the_same_in_every_unit(value, unit, steps):
    config = OptimConfig(warmup=value, warmup_unit=unit)
    rates = [
        learning_rate(config, s, 100, global_batch=256, examples_per_epoch=2_560)
        for s in range(100)
    ]
    assert rates.index(max(rates)) == steps


def test_warm_up_is_rounded_but_never_to_nothing():
    config = OptimConfig(warmup=1e-4)
    assert learning_rate(config, 0, 100) == 0 and learning_rate(config, 1, 100) == 1e-3


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(warmup=100, warmup_unit="steps"), "warmup is 100 steps (100 steps), but the run"),
        (dict(warmup=3, warmup_unit="epochs"), "pass global_batch and examples_per_epoch"),
        (dict(cooldown=3, cooldown_unit="examples"), "pass global_batch"),
    ],
)
def test_lengths_that_do_not_fit_the_run_are_refused(settings, words):
    with pytest.raises(ValueError) as error:
        learning_rate(OptimConfig(**settings), 0, 100)
    assert words in str(error.value)


@pytest.mark.parametrize(
    "settings, words",
    [
        (dict(lr=-1e-3), "lr (-0.001) must be above 0"),
        (dict(lr=float("nan")), "lr (nan)"),
        (dict(weight_decay=-0.1), "weight_decay (-0.1)"),
        (dict(warmup=1.5), "warmup (1.5)"),
        (dict(clip_norm=0.0), "clip_norm (0.0)"),
        (dict(ema=1.0), "ema (1.0)"),
        (dict(betas=(0.9, 1.0)), "betas ((0.9, 1.0))"),
        (dict(final_lr=1.0), "final_lr (1.0)"),
        (dict(name="sgd", decay_scaled_by_lr=False), "must be true for sgd"),
    ],
)
def test_wrong_settings_are_refused(settings, words):
    with pytest.raises(ValueError) as error:
        OptimConfig(**settings)
    assert words in str(error.value)


# ----------------------------------------------------------------------- groups


def names_by_decay(model, config):
    optimizer = make_optimizer(model, config)
    names = {p: name for name, p in model.named_parameters()}
    return {
        names[p]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }


@pytest.mark.parametrize("pool", ["token", "map"])
def test_kernels_decay_and_nothing_else(pool):
    model = ViT(ViTConfig(image_size=32, patch_size=8, num_classes=10, pool=pool, depth=1))
    decays = names_by_decay(model, OptimConfig(weight_decay=0.1))
    assert len(decays) == len(dict(model.named_parameters()))
    kernels = {name for name, decay in decays.items() if decay}
    matrices = {
        name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)
    }
    assert kernels == {f"{name}.weight" for name in matrices}
    assert {"head.weight", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} <= kernels


@pytest.mark.parametrize("scaled", [True, False])
def test_decay_follows_the_learning_rate_or_only_its_schedule(scaled):
    torch.manual_seed(0)
    left = {}
    for lr in (1e-3, 4e-3):
        model = ViT(TINY)
        nn.init.ones_(model.head.weight)
        config = OptimConfig(lr=lr, weight_decay=0.1, decay_scaled_by_lr=scaled)
        optimizer = make_optimizer(model, config)
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        set_learning_rate(optimizer, lr / 2)  # half way down the schedule
        optimizer.step()
        left[lr] = 1 - model.head.weight.mean().item()
    if scaled:
        assert left == pytest.approx({1e-3: 0.5e-4, 4e-3: 2e-4}, rel=4e-3)
    else:
        assert left == pytest.approx({1e-3: 0.05, 4e-3: 0.05}, rel=1e-4)


def test_big_visions_decay_is_a_thousand_times_smaller():
    values = [
        names_by_decay(ViT(TINY), config)["head.weight"]
        for config in (
            OptimConfig(weight_decay=0.1),
            OptimConfig(weight_decay=1e-4, decay_scaled_by_lr=False),
        )
    ]
    assert values[0] == pytest.approx(values[1])


def test_layer_decay_slows_lower_layers_and_not_their_independent_decay():
    model = ViT(TINY)
    config = OptimConfig(layer_decay=0.5, weight_decay=1e-4, decay_scaled_by_lr=False)
    optimizer = make_optimizer(model, config)
    set_learning_rate(optimizer, 1e-3)
    names = {p: name for name, p in model.named_parameters()}
    rates = {names[p]: group for group in optimizer.param_groups for p in group["params"]}
    for name, rate in (
        ("head.weight", 1e-3),
        ("norm.bias", 1e-3),
        ("blocks.1.mlp.fc1.weight", 5e-4),
        ("blocks.0.norm1.weight", 2.5e-4),
        ("pos_embed", 1.25e-4),
        ("patch_embed.proj.weight", 1.25e-4),
    ):
        assert rates[name]["lr"] == pytest.approx(rate), name
    for name in ("head.weight", "patch_embed.proj.weight"):
        group = rates[name]
        assert group["lr"] * group["weight_decay"] == pytest.approx(1e-4)


def test_adamw_steps_by_its_formula():
    torch.manual_seed(0)
    model = ViT(TINY)
    optimizer = make_optimizer(model, OptimConfig(weight_decay=0.1))
    weight = model.blocks[0].mlp.fc1.weight
    value, m, v = weight.detach().double(), 0.0, 0.0
    for step in (1, 2, 3):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        g = weight.grad.double()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        moved = (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
        value = value - 2e-3 * 0.1 * value - 2e-3 * moved
        set_learning_rate(optimizer, 2e-3)
        optimizer.step()
    torch.testing.assert_close(weight.detach().double(), value, atol=1e-6, rtol=1e-5)


def test_names_of_wrapped_models_are_the_plain_ones():
    for name in ("head.weight", "module.head.weight", "_orig_mod.module.head.weight"):
        assert plain_name(name) == "head.weight"
    assert plain_name("blocks.0._orig_mod.norm1.bias") == "blocks.0.norm1.bias"


# ---------------------------------------------------------------- moving average


def test_moving_average_follows_its_formula_and_swaps_in_and_out():
    torch.manual_seed(0)
    model = ViT(TINY)
    ema = Ema(model, 0.9)
    expected = model.norm.bias.detach().clone()
    for update in range(20):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(1)
        ema.update(model)
        decay = min(0.9, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * model.norm.bias.detach()
    own = model.norm.bias.detach().clone()
    with ema.swapped_into(model):
        torch.testing.assert_close(model.norm.bias.detach(), expected)
    assert torch.equal(model.norm.bias, own)
    other = Ema(ViT(TINY), 0.9)
    other.load_state_dict(ema.state_dict())
    assert other.updates == 20
    torch.testing.assert_close(other.weights["norm.bias"], expected)
    with pytest.raises(ValueError, match="of another model"):
        other.load_state_dict({"weights": {"x": own}, "updates": 1})


# --------------------------------------------------------------------- 8-bit AdamW


def train(name, steps, model=None, optimizer=None, first=0, total=40):
    """Losses of a small model on a fixed task, and what trained it."""
    config = OptimConfig(name=name, lr=2e-3, warmup=0.1)
    if model is None:
        torch.manual_seed(0)
        model = ViT(TINY)
        optimizer = make_optimizer(model, config)
    losses = []
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        labels = torch.randint(0, 10, (32,), generator=generator)
        images = torch.randn(32, 3, 32, 32, generator=generator)
        images[:, 0] += (labels[:, None, None] - 4.5) / 3
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        set_learning_rate(optimizer, learning_rate(config, step, total))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, model, optimizer


def state_bytes(optimizer):
    """Bytes of the moments; a quantised tensor is the sum of its parts."""
    total = 0
    for state in optimizer.state.values():
        for name in ("exp_avg", "exp_avg_sq"):
            tensor = state[name]
            if hasattr(tensor, "__tensor_flatten__"):
                # the look-up table of 256 floats is shared in spirit, but stored per tensor
                parts = [getattr(tensor, part) for part in tensor.__tensor_flatten__()[0]]
            else:
                parts = [tensor]
            total += sum(part.numel() * part.element_size() for part in parts)
    return total


@pytest.fixture
def eager_steps():
    """Run the 8-bit step uncompiled: the same arithmetic, without minutes of compiling."""
    try_torchao()
    with torch.compiler.set_stance("force_eager"):
        yield


def test_8_bit_moments_reach_the_same_loss(eager_steps):
    full, _, _ = train("adamw", 40)
    eight, _, _ = train("adamw8bit", 40)
    full_end, eight_end = (sum(losses[-10:]) / 10 for losses in (full, eight))
    assert full_end < 0.7 * full[0]
    assert abs(eight_end - full_end) < 0.02 * full_end


def test_8_bit_moments_take_less_than_a_third_of_the_memory(eager_steps):
    sizes = {}
    for name in ("adamw", "adamw8bit"):
        model = ViT(ViTConfig.named("S/32", depth=2, num_classes=1000))
        optimizer = make_optimizer(model, OptimConfig(name=name))
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
        sizes[name] = state_bytes(optimizer)
    assert sizes["adamw"] == 8 * sum(p.numel() for p in model.parameters())
    assert sizes["adamw8bit"] < 0.30 * sizes["adamw"]


@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "sgd"])
def test_saved_state_continues_exactly(name, tmp_path, request):
    if name == "adamw8bit":
        request.getfixturevalue("eager_steps")
    whole, _, _ = train(name, 12)
    _, model, optimizer = train(name, 6)
    torch.save((model.state_dict(), optimizer.state_dict()), tmp_path / "state.pt")
    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    again = ViT(TINY)
    again.load_state_dict(weights)
    resumed = make_optimizer(again, OptimConfig(name=name, lr=2e-3, warmup=0.1))
    resumed.load_state_dict(state)
    rest, _, _ = train(name, 6, again, resumed, first=6)
    assert rest == whole[6:]


@pytest.mark.compile
def test_compiled_8_bit_step_moves_every_parameter():
    try_torchao()
    config = ViTConfig(
        image_size=32, patch_size=4, width=64, depth=1, mlp_width=64, heads=1, num_classes=64
    )
    model = ViT(config)
    optimizer = make_optimizer(model, OptimConfig(name="adamw8bit"))
    assert unmoved(model, optimizer) == []


# ------------------------------------------------------------------- DDP and FSDP2


def unmoved(model, optimizer):
    """Names of parameters that a step leaves alone, given a gradient everywhere."""
    named = dict(model.named_parameters())
    before = {name: whole(p) for name, p in named.items()}
    torch.manual_seed(0)
    model(torch.randn(4, 3, 32, 32)).sum().backward()
    for p in named.values():  # zero head and biases: give each weight a gradient
        p.grad = p.grad * 0 + 0.01
    set_learning_rate(optimizer, 1e-2)
    optimizer.step()
    return [name for name, p in named.items() if (whole(p) == before[name]).any()]


def whole(parameter):
    p = parameter.detach()
    return (p.full_tensor() if hasattr(p, "full_tensor") else p).clone()


def rank_main(rank, port, names, wrapper, queue):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    for name in names:
        stance = "force_eager" if wrapper == "ddp" else "default"  # FSDP2's trap is in compiling
        with torch.compiler.set_stance(stance):
            queue.put((name, rank, *step_wrapped(name, wrapper)))
    dist.barrier()
    dist.destroy_process_group()


def step_wrapped(name, wrapper):
    """What did not move, whether the average follows, whether the ranks agree."""
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=32, patch_size=4, width=64, depth=1, mlp_width=64, heads=1, num_classes=64
    )
    model = ViT(config)
    if wrapper == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    else:
        for block in model.blocks:
            fully_shard(block)
        fully_shard(model)
    optimizer = make_optimizer(model, OptimConfig(name=name, weight_decay=0.0))
    ema = Ema(model, 0.5)
    still = unmoved(model, optimizer)
    ema.update(model)
    named = {plain_name(name): p for name, p in model.named_parameters()}
    follows = all((whole(ema.weights[n]) != whole(p)).any() for n, p in named.items())
    sums = [torch.zeros(()) for _ in range(2)]
    dist.all_gather(sums, torch.stack([whole(p).sum() for p in named.values()]).sum())
    return still, follows, sums[0].item() == sums[1].item()


@pytest.mark.compile
@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2"])
def test_every_parameter_moves_on_two_processes(wrapper):
    names = ["adamw", "sgd"] + ["adamw8bit"] * bool(importlib.util.find_spec("torchao"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    queue = mp.get_context("spawn").SimpleQueue()
    mp.spawn(rank_main, (port, names, wrapper, queue), nprocs=2, join=True)
    for _ in range(2 * len(names)):
        name, rank, still, follows, alike = queue.get()
        assert still == [], f"{name} on rank {rank}"
        assert follows and alike, name
