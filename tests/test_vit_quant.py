"""Quantised models of real images against their originals; refusals; files; training for it."""

import pickle
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from vit.config import OptimConfig, ViTConfig
from vit.model import ViT
from vit.optim import learning_rate, make_optimizer, set_learning_rate

pytest.importorskip("torchao", reason="quantisation needs the extra 'quant'")
from vit.quant import (
    SCHEMES,
    activation_nodes,
    load_quantised,
    quantise,
    refusal,
    save_quantised,
)

ROOT = Path(__file__).parent.parent
compare = runpy.run_path(str(ROOT / "benchmarks" / "quant.py"))["compare"]  # not a package
CONFIG = ViTConfig(
    image_size=32, patch_size=8, width=128, depth=2, mlp_width=512, heads=2, num_classes=10
)


pytestmark = [pytest.mark.compile, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def digits():
    """Scans of handwritten digits: images (n, 3, 32, 32) in [-1, 1] and labels, train and test."""
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    images = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1
    images = nn.functional.interpolate(images, (32, 32), mode="bilinear").expand(-1, 3, -1, -1)
    labels = torch.tensor(labels)
    order = torch.tensor(np.random.default_rng(0).permutation(len(labels)))
    images, labels = images[order].contiguous(), labels[order]
    return images[:1200], labels[:1200], images[1200:], labels[1200:]


def fit(model, images, labels, steps, lr=1e-3):
    """Train with the project's optimizer and schedule; the last loss."""
    config = OptimConfig(lr=lr, weight_decay=0.05)
    optimizer = make_optimizer(model, config)
    model.train()
    for step in range(steps):
        part = torch.randint(0, len(images), (64,), generator=torch.Generator().manual_seed(step))
        loss = nn.functional.cross_entropy(model(images[part]), labels[part])
        loss.backward()
        set_learning_rate(optimizer, learning_rate(config, step, steps))
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    return loss.item()


@pytest.fixture(scope="module")
def trained(digits):
    torch.manual_seed(0)
    model = ViT(CONFIG)
    fit(model, *digits[:2], steps=350, lr=2e-3)
    return model


def accuracy(model, images, labels):
    with torch.no_grad():
        return (model(images).argmax(1) == labels).float().mean().item()


def static(model, digits):
    return quantise(model, "int8-static", calibration=digits[0][:192].split(64))


needs_static = pytest.mark.skipif(bool(refusal("int8-static")), reason=str(refusal("int8-static")))


@needs_static
def test_static_int8_agrees_and_is_faster_and_smaller(trained, digits):
    quantised = static(trained, digits)
    report = compare(trained, quantised, *digits[2:], batch=199, rounds=7)
    assert report.accuracy[0] > 0.88, report
    assert report.agreement >= 0.98, report
    assert report.accuracy[1] > report.accuracy[0] - 0.01, report
    assert report.speedup > 1, report
    assert report.size_bytes[1] < 0.35 * report.size_bytes[0], report
    assert "times as fast" in str(report)


@needs_static
def test_compiled_static_int8_computes_what_its_plain_form_does(trained, digits):
    quantised = static(trained, digits)
    images = digits[2][:199]
    fast = quantised(images)
    quantised.compiled = False
    plain = quantised(images)
    assert (fast - plain).norm() < 0.03 * plain.norm()


@needs_static
def test_static_int8_leaves_the_model_alone_and_follows_the_batch_size(trained, digits):
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    quantised = static(trained, digits)
    quantised.compiled = False
    assert all(torch.equal(t, before[n]) for n, t in trained.state_dict().items())
    images = digits[2]
    whole = quantised(images[:7])
    torch.testing.assert_close(quantised(images[:1]), whole[:1])
    assert whole.shape == (7, 10) and not whole.requires_grad


@pytest.mark.parametrize("scheme", ["int8-weight", pytest.param("int8-static", marks=needs_static)])
def test_saved_models_come_back_exactly(trained, digits, scheme, tmp_path):
    quantised = quantise(trained, scheme, calibration=digits[0][:192].split(64))
    save_quantised(tmp_path / "q.pt", quantised)
    loaded = load_quantised(tmp_path / "q.pt")
    quantised.compiled = loaded.compiled = False
    images = digits[2][:50]
    assert torch.equal(loaded(images), quantised(images))
    assert loaded.config == CONFIG and loaded.scheme == scheme
    size = (tmp_path / "q.pt").stat().st_size
    assert size < 0.45 * sum(4 * p.numel() for p in trained.parameters())
    assert [file.name for file in tmp_path.iterdir()] == ["q.pt"]


def test_weight_only_int8_agrees_at_a_third_of_the_size(trained, digits):
    quantised = quantise(trained, "int8-weight")
    images, labels = digits[2:]
    agreement = (quantised(images).argmax(1) == trained(images).argmax(1)).float().mean()
    assert agreement >= 0.99
    assert quantised.size_bytes < 0.35 * sum(4 * p.numel() for p in trained.parameters())


def test_unfit_schemes_are_refused_with_the_reason(trained):
    with pytest.raises(ValueError, match="float8 has no kernels on CPUs; choose int8-static"):
        quantise(trained, "float8")
    with pytest.raises(ValueError, match="unknown scheme 'int3'; known: int8-static"):
        quantise(trained, "int3")
    assert "not for cuda" in refusal("int8-static", "cuda")
    assert "no kernels on mps" in refusal("float8", "mps")
    assert [scheme for scheme in SCHEMES if refusal(scheme) is None][-1] == "int8-weight"


def test_schemes_are_refused_on_cpus_that_cannot_run_them_or_would_be_slow(trained, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert "this is aarch64" in refusal("int8-static")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "no C++ compiler" in refusal("int8-static")
    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setattr("vit.quant.has_vnni", lambda: False)
    assert "over 20 times as long" in refusal("int8-dynamic")
    assert refusal("int8-static") is None
    monkeypatch.setattr("vit.quant.has_vnni", lambda: True)
    assert refusal("int8-dynamic") is None
    with pytest.raises(ValueError, match="needs calibration"):
        quantise(trained, "int8-static")


@needs_static
def test_without_vnni_activations_keep_to_seven_bits(trained, digits, monkeypatch):
    for vnni, top in ((True, 255), (False, 127)):
        monkeypatch.setattr("vit.quant.has_vnni", lambda vnni=vnni: vnni)
        graph = static(trained, digits).model.graph
        assert {node.args[4] for node in activation_nodes(graph)} == {top}


@pytest.mark.skipif(bool(refusal("int8-dynamic")), reason=str(refusal("int8-dynamic")))
def test_dynamic_int8_agrees_on_a_cpu_with_vnni(trained, digits):
    quantised = quantise(trained, "int8-dynamic")
    quantised.compiled = False
    images = digits[2]
    agreement = (quantised(images).argmax(1) == trained(images).argmax(1)).float().mean()
    assert agreement >= 0.98


@pytest.mark.parametrize(
    "capability, schemes",
    [((7, 5), []), ((8, 0), ["int8-dynamic"]), ((9, 0), ["int8-dynamic", "float8"])],
)
def test_gpu_schemes_follow_the_capability(monkeypatch, capability, schemes):
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    fit_ones = [s for s in ("int8-dynamic", "float8") if refusal(s, "cuda") is None]
    assert fit_ones == schemes


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("scheme", ["int8-dynamic", "float8"])
def test_dynamic_schemes_agree_on_a_gpu(trained, digits, scheme, tmp_path):
    if refusal(scheme, "cuda"):
        pytest.skip(refusal(scheme, "cuda"))
    quantised = quantise(trained.to("cuda"), scheme)
    images, labels = (tensor.to("cuda") for tensor in digits[2:])
    report = compare(trained, quantised, images, labels)
    trained.to("cpu")
    assert report.agreement >= 0.98, report
    save_quantised(tmp_path / "q.pt", quantised)
    loaded = load_quantised(tmp_path / "q.pt", "cuda")
    assert torch.equal(loaded(images[:8].bfloat16()), quantised(images[:8].bfloat16()))


class Bomb:
    """Writes a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return exec, (f"open({str(self.path)!r}, 'w')",)


def test_files_with_code_are_refused(tmp_path):
    torch.save({"scheme": "int8-weight", "state": Bomb(tmp_path / "ran")}, tmp_path / "q.pt")
    with pytest.raises((ValueError, pickle.UnpicklingError)):
        load_quantised(tmp_path / "q.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "q.pt").read_bytes()[:200])
    with pytest.raises(ValueError, match="cut.pt is not a readable quantised model"):
        load_quantised(tmp_path / "cut.pt")
    assert not (tmp_path / "ran").exists()
