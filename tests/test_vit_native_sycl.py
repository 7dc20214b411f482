"""SYCL devices: which one computes, and what is said where there is none, or no oneDNN for it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from native_backends import saved

from vit.native import build, toolchain
from vit.native.model import NativeViT

ROOT = Path(__file__).parent.parent
only_sycl = pytest.mark.parametrize("backend", ["sycl"], indirect=True)
COMPUTE = """
import sys, numpy as np
from vit.native.model import NativeViT
for backend in sys.argv[2:]:
    model = NativeViT.open(sys.argv[1], backend=backend)
    print(model(np.zeros((1, 3, 40, 40), np.float32)).shape)
"""


def computes(path, backends=("sycl",), **environment):
    """Compute in a process that ends with the last model open."""
    return subprocess.run(
        [sys.executable, "-c", COMPUTE, str(path), *backends],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        cwd=ROOT,
        check=False,
    )


def install(folder, version, runtime):
    """An oneDNN of this version as far as one looks at it."""
    include = folder / "include/oneapi/dnnl"
    include.mkdir(parents=True)
    major, minor = version.split(".")
    (include / "dnnl_version.h").write_text(
        f"#define DNNL_VERSION_MAJOR {major}\n#define DNNL_VERSION_MINOR {minor}\n"
        "#define DNNL_VERSION_PATCH 0\n"
    )
    (include / "dnnl_config.h").write_text(f"#define DNNL_CPU_RUNTIME DNNL_RUNTIME_{runtime}\n")
    (folder / "lib").mkdir()
    (folder / "lib/libdnnl.so.3").touch()


@only_sycl
def test_the_device_is_chosen_and_named(backend, tmp_path):
    model, path = saved(tmp_path)
    with NativeViT.open(path, backend=backend, device="cpu") as native:
        assert native.description.device.decode()
        assert native(np.zeros((1, 3, 40, 40), np.float32)).shape == (1, 10)


@only_sycl
def test_a_gpu_that_is_not_there_is_an_error_that_names_what_is(backend, tmp_path):
    _, path = saved(tmp_path)
    try:
        NativeViT.open(path, backend=backend, device="gpu").close()
    except ValueError as error:
        assert "SYCL finds no gpu" in str(error) and "; devices: " in str(error)
    else:
        pytest.skip("there is a GPU")


@only_sycl
def test_a_machine_without_a_runtime_says_so(backend, tmp_path):
    _, path = saved(tmp_path)
    result = computes(path, OCL_ICD_FILENAMES="/nonexistent", ONEAPI_DEVICE_SELECTOR="opencl:*")
    assert result.returncode == 1
    assert "ValueError: SYCL finds no device" in result.stderr and "none; is the" in result.stderr


@only_sycl
def test_a_process_may_end_with_a_model_open(backend, tmp_path):
    _, path = saved(tmp_path)
    result = computes(path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "(1, 10)\n", "")


@only_sycl
@pytest.mark.parametrize("backends", [("cpu", "sycl"), ("sycl", "cpu")], ids=" then ".join)
def test_both_back_ends_in_one_process_are_refused(backend, tmp_path, backends):
    try:
        build.build("cpu")
    except toolchain.Missing as missing:
        pytest.skip(str(missing))
    _, path = saved(tmp_path)
    result = computes(path, backends)
    assert (result.returncode, result.stdout) == (1, "(1, 10)\n")
    assert "ValueError: " in result.stderr and "process" in result.stderr.splitlines()[-1]


def test_the_libraries_of_sycl_and_of_cpus_are_told_apart(tmp_path, monkeypatch):
    install(tmp_path, "3.13", "SYCL")
    monkeypatch.setenv("ONEAPI_ROOT", str(tmp_path))
    monkeypatch.setenv("DNNLROOT", str(tmp_path))
    assert toolchain.sycl_onednn().version == (3, 13)
    with pytest.raises(toolchain.Missing, match="for CPUs is not in DNNLROOT"):
        toolchain.onednn()
    with pytest.raises(toolchain.Missing, match=f"SYCL with its run-time.* not in {tmp_path}"):
        toolchain.sycl_runtime()


def test_a_onednn_of_oneapi_is_found_unless_it_is_too_old(tmp_path, monkeypatch):
    monkeypatch.setenv("ONEAPI_ROOT", str(tmp_path))
    install(tmp_path, "3.11", "SYCL")
    with pytest.raises(toolchain.Missing, match=r"oneDNN 3.13 or newer for SYCL .*--no-deps"):
        toolchain.sycl_onednn()
    install(tmp_path / "dnnl/latest", "3.14", "SYCL")
    assert toolchain.sycl_onednn().include == tmp_path / "dnnl/latest/include"
