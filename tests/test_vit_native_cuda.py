"""GPUs by NVIDIA: what is compiled, found and refused, and the kernels that other tests leave out.

Where there is no GPU, the kernels of `cuda` run as `cuda-host`: the same sources, compiled for the
CPU. Of the back end itself its build is then tested, and what it says.
"""

import ctypes
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch
from calibration_images import WHOLE, drawn, write_images
from native_backends import computed, distance, images_for, no_gpu, saved

from vit.native import build, toolchain
from vit.native.model import NativeViT
from vit.native.plan import BACKENDS, SOURCE, plan_of
from vit.native.quantise import FEWEST, quantise

SIMULATED = "cuda-simulated"
kernels = pytest.mark.parametrize("backend", ["cuda", "cuda-host"], indirect=True)
ROUND = """
#include "cuda/float8.hpp"
extern "C" void round_all(const float* values, unsigned char* codes, float* back, int count) {
  for (int i = 0; i < count; ++i) {
    codes[i] = vit::to_float8(values[i]).bits;
    back[i] = vit::to_float({codes[i]});
  }
}
"""
# width, heads, side of the images, pool
ATTENTIONS = {
    "heads of 20": (100, 5, 40, "token"),
    "heads of 5": (35, 7, 40, "token"),
    "heads of 64": (128, 2, 40, "mean"),
    "heads of 80": (160, 2, 40, "mean"),
    "heads of 128": (256, 2, 40, "token"),
    "rows of 270": (270, 9, 40, "mean"),  # more than LayerNorm holds one by one
    "one token": (96, 3, 8, "mean"),
    "63 tokens and a class": (96, 3, 56, "token"),
    "290 tokens": (64, 2, 136, "token"),
}


@pytest.fixture(scope="module")
def library():
    """The library of cuda, which warnings keep from being built; skipped without its tools."""
    try:
        return build.build("cuda")
    except toolchain.Missing as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def simulated():
    """The kernels as the threads of a GPU run them, on a CPU: warps, barriers and tensor cores."""
    try:
        toolchain.compiler()
    except toolchain.Missing as missing:
        pytest.skip(str(missing))
    host = plan_of("cuda-host", sanitize=False)
    tools = {suffix: (*tool, "-DVIT_SIMULATED") for suffix, tool in host.tools.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKENDS, SIMULATED, lambda sanitize: replace(host, tools=tools))
        for backend in (SIMULATED, "cuda-host"):
            build.build(backend)
        yield SIMULATED


def install(root, *names):
    """Files of CUDA as far as one looks at them."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o755)


def test_nvcc_gets_the_sanitisers_as_one_option(library):
    tool = plan_of("cuda", sanitize=True).tools[".cu"]
    assert any(r",-fsanitize=address\,undefined," in option for option in tool)


def test_a_machine_without_a_gpu_says_so(library, tmp_path):
    if not no_gpu("cuda"):
        pytest.skip("there is a GPU")
    _, path = saved(tmp_path)
    with pytest.raises(ValueError, match=r"^no NVIDIA GPU: \w+"):
        NativeViT.open(path, backend="cuda")


@pytest.mark.parametrize("backend", ["cuda"], indirect=True)
def test_a_gpu_is_chosen_by_its_number(backend, tmp_path):
    _, path = saved(tmp_path)
    with NativeViT.open(path, backend=backend, device="cuda:0") as native:
        assert native.description.device.decode()
    for device in ("cuda:99", "cuda:", "cuda:1x", "cpu"):
        with pytest.raises(ValueError, match=f"device is {device}, but this back end has cuda:0"):
            NativeViT.open(path, backend=backend, device=device)


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("backend", ["cuda"], indirect=True)
def test_a_recorded_pass_computes_what_the_first_did(backend, tmp_path, precision):
    model, path = saved(tmp_path)
    images = images_for(model, 6)
    with NativeViT.open(path, backend=backend, precision=precision) as native:
        first = [native(part) for part in (images[:3], images[3:])]
        for part, expected in zip((images[:3], images[3:]), first, strict=True):
            assert np.array_equal(native(part), expected)


@kernels
@pytest.mark.parametrize("kind", ATTENTIONS)
def test_attention_in_bfloat16_takes_heads_and_tokens_of_any_number(backend, tmp_path, kind):
    width, heads, side, pool = ATTENTIONS[kind]
    model, path = saved(tmp_path, width=width, heads=heads, image_size=side, pool=pool)
    images = images_for(model, 2)
    with NativeViT.open(path, backend=backend, precision="bfloat16") as native:
        error = distance(native(images), computed(model, images))
    # as tests/test_vit_native.py derives it
    bound = 4 * 2**-9 / 3**0.5 * (10 * model.config.depth + 2) ** 0.5
    assert bound / 100 < error < bound


@kernels
def test_gelu_by_tanh_is_within_the_roundings_of_bfloat16(backend, tmp_path):
    """In bfloat16 both forms of GELU are computed as the one by tanh."""
    errors = {}
    for gelu in ("exact", "tanh"):
        model, path = saved(tmp_path / gelu, gelu=gelu, depth=8)
        images = images_for(model, 8)
        with NativeViT.open(path, backend=backend, precision="bfloat16") as native:
            difference = native(images) - computed(model, images)
        errors[gelu] = np.sqrt(np.mean(difference**2))
    assert errors["exact"] < 1.25 * errors["tanh"]


@kernels
def test_tf32_is_float32_with_products_of_ten_bits(backend, tmp_path):
    model, path = saved(tmp_path)
    images = images_for(model, 2)
    with NativeViT.open(path, backend=backend, precision="tf32") as native:
        assert distance(native(images), computed(model, images)) < 5e-3
        native.begin_training()
        targets = np.eye(10, dtype=np.float32)[:2]
        losses = [native.train_step(images, targets, 1e-3) for _ in range(5)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("backend", ["cpu", "mojo"], indirect=True)
def test_other_back_ends_refuse_tf32_by_name(backend, tmp_path):
    _, path = saved(tmp_path)
    with pytest.raises(ValueError, match="tf32 needs the back end cuda; use precision=float32"):
        NativeViT.open(path, backend=backend, precision="tf32")


def test_floats_become_the_nearest_of_e4m3(tmp_path):
    """Nothing is computed, so this needs no back end: the function is one for GPU and CPU."""
    try:
        compiler = toolchain.compiler()
    except toolchain.Missing as missing:
        pytest.skip(str(missing))
    (tmp_path / "round.cpp").write_text(ROUND)
    options = ("-std=c++17", "-shared", "-fPIC", f"-I{SOURCE}")
    file = tmp_path / "round.so"
    subprocess.run([compiler, *options, tmp_path / "round.cpp", "-o", file], check=True)
    sixteen = np.arange(2**16, dtype=np.uint32) << 16  # all bfloat16: NaN, infinities, subnormals
    ends = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    ties = (ends[:126] + ends[1:127]) / 2
    around = [np.nextafter(ties, np.float32(to)) for to in (0, 500)]
    values = np.concatenate([sixteen.view(np.float32), ends, ties, -ties, *around])
    codes, back = np.empty(len(values), np.uint8), np.empty_like(values)
    ctypes.CDLL(str(file)).round_all(
        *(each.ctypes.data_as(ctypes.c_void_p) for each in (values, codes, back)), len(values)
    )
    expected = torch.from_numpy(values).clamp(-448, 448).to(torch.float8_e4m3fn)
    np.testing.assert_array_equal(back, expected.float().numpy())
    number = ~np.isnan(values)
    assert np.array_equal(codes[number], expected.view(torch.uint8).numpy()[number])


@kernels
def test_heads_that_are_too_wide_are_refused_with_what_takes_them(backend, tmp_path):
    model, path = saved(tmp_path, width=160, heads=1)
    with NativeViT.open(path, backend=backend) as native:
        with pytest.raises(ValueError, match="heads have 160 channels, .* up to 128; use cpu"):
            native(images_for(model, 1))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("kind", ATTENTIONS)
def test_threads_of_a_gpu_compute_what_one_does(simulated, tmp_path, kind, precision):
    width, heads, side, pool = ATTENTIONS[kind]
    settings = {"width": width, "heads": heads, "image_size": side, "pool": pool, "depth": 1}
    model, path = saved(tmp_path, **settings)
    images = images_for(model, 2)
    found, expected = (
        NativeViT.open(path, backend=backend, precision=precision)(images)
        for backend in (simulated, "cuda-host")
    )
    # now and then a sum in another order is rounded to the next number
    assert distance(found, expected) < {"float32": 5e-6, "tf32": 2e-4, "bfloat16": 2e-3}[precision]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "float8"])
def test_threads_of_a_gpu_compute_with_codes(simulated, tmp_path, precision):
    model, path = saved(tmp_path / "model", images=WHOLE)
    folder = write_images(tmp_path / "images", drawn(FEWEST, model.config.image_size))
    quantise(path, [folder], tmp_path / "int8", backend="cuda-host", threads=1)
    images = images_for(model, 2)
    found, expected = (
        NativeViT.open(tmp_path / "int8", backend=backend, precision=precision)(images)
        for backend in (simulated, "cuda-host")
    )
    # what moves to the next code moves four times as far in float8
    assert distance(found, expected) < {"int8": 2e-3, "float8": 8e-3}[precision]


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit"])
def test_threads_of_a_gpu_train_as_one_does(simulated, tmp_path, optimizer):
    model, path = saved(tmp_path, layer_scale=0.1, registers=2)
    images, targets = images_for(model, 3), np.eye(10, dtype=np.float32)[:3]
    trained = []
    for backend in (simulated, "cuda-host"):
        native = NativeViT.open(path, backend=backend)
        native.begin_training(optimizer=optimizer, eps=1e-3)
        losses = [native.train_step(images, targets, 1e-3) for _ in range(3)]
        names = [(what, *item) for what in ("weight", "moment1") for item in shapes(model)]
        trained.append([losses, *(native.read(*name) for name in names)])
    for found, expected in zip(*trained, strict=True):
        # where the last bit decides between two codes of a moment, it shows
        assert np.linalg.norm(np.subtract(found, expected)) <= 1e-3 * np.linalg.norm(expected)


def shapes(model):
    """Names and shapes of what is trained."""
    return [(name, tuple(p.shape)) for name, p in model.named_parameters()]


def test_cuda_is_found_in_a_toolkit_and_among_pythons_packages(tmp_path, monkeypatch):
    toolkit, packages = tmp_path / "toolkit", tmp_path / "site-packages"
    headers = ("include/cuda_runtime_api.h", "include/cublas_v2.h", "include/cublasLt.h")
    install(toolkit, "bin/nvcc", headers[0], "lib64/libcudart.so")
    monkeypatch.delenv("NVCC", raising=False)
    monkeypatch.setenv("CUDA_HOME", str(toolkit))
    monkeypatch.setattr(toolchain.sysconfig, "get_path", lambda name: str(packages))
    with pytest.raises(
        toolchain.Missing, match=r"cublas and cublasLt are not in .*toolkit.*\[cuda\]"
    ):
        toolchain.cuda()
    wheels = packages / "nvidia/cu13"
    install(wheels, *headers[1:], "lib/libcublas.so.13", "lib/libcublasLt.so.13")
    found = toolchain.cuda()
    assert found.nvcc == str(toolkit / "bin/nvcc")
    assert found.includes == (toolkit / "include", wheels / "include")
    assert [file.name for file in found.libraries] == [
        *("libcudart.so", "libcublas.so.13", "libcublasLt.so.13")
    ]
