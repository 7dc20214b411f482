"""The back end in Mojo: its compiler, and the processor that it is compiled for."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from native_backends import saved

from vit.native import build, toolchain
from vit.native.model import NativeViT

ROOT = Path(__file__).parent.parent
# prints of a compiler what is asked of it, as Mojo's does
COMPILER = """#!/bin/sh
case "$*" in
--version) echo 'Mojo {version} (0000)' ;;
*) printf 'Effective target:\\n  --target-cpu {cpu}\\n  --target-features +a,-b\\n' ;;
esac
"""
# a processor without AVX-512 and VNNI
NARROWER = """#!/bin/sh
case "$*" in
*--print-effective-target*) exec {mojo} "$@" --target-cpu haswell ;;
*) exec {mojo} "$@" ;;
esac
"""


def program(path, text):
    """Write a program of the shell."""
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def compiler_of(path, version, cpu):
    return program(path, COMPILER.format(version=version, cpu=cpu))


def test_mojo_of_another_version_is_refused_by_name(tmp_path, monkeypatch):
    for version in ("0.26.2", "1.3.0"):
        path = compiler_of(tmp_path / version, version, "zen4")
        monkeypatch.setenv("MOJO", path)
        with pytest.raises(toolchain.Missing, match=rf"{path} is 'Mojo {version} .*1\.2 is needed"):
            build.plan_of("mojo", sanitize=False)
    for path, said in ((sys.executable, "Python .*"), (program(tmp_path / "text", "?"), "")):
        monkeypatch.setenv("MOJO", path)
        with pytest.raises(toolchain.Missing, match=rf"is '{said}', but Mojo 1\.2 is needed; inst"):
            build.plan_of("mojo", sanitize=False)


def test_a_library_is_that_of_one_processor(tmp_path, monkeypatch):
    keys = set()
    for cpu in ("haswell", "zen4"):
        monkeypatch.setenv("MOJO", compiler_of(tmp_path / cpu, "1.2.0", cpu))
        plan = build.plan_of("mojo", sanitize=False)
        assert f"--target-cpu {cpu} --target-features +a,-b" in " ".join(plan.tools[".mojo"])
        keys.add(plan.key.replace(str(tmp_path / cpu), ""))
    assert len(keys) == 2


@pytest.mark.parametrize("backend", ["mojo"], indirect=True)
def test_it_computes_on_the_cpu_in_two_precisions(backend, tmp_path):
    model, path = saved(tmp_path)
    with NativeViT.open(path, backend=backend, threads=3) as native:
        assert native.description.device.decode() == "mojo, 3 threads"
    for options, reason in (
        ({"device": "gpu"}, "device is gpu, but this back end has only cpu"),
        ({"precision": "bfloat16"}, "mojo computes in float32 and int8; bfloat16 needs another"),
    ):
        with pytest.raises(ValueError, match=reason):
            NativeViT.open(path, backend=backend, **options)


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the narrower processor is one of x86")
@pytest.mark.parametrize("backend", ["mojo"], indirect=True)
def test_vectors_of_avx2_compute_the_same(backend, tmp_path):
    mojo = program(tmp_path / "mojo", NARROWER.format(mojo=toolchain.mojo().program))
    chosen = "mojo and (each_variant or gradients or moments or observer)"
    modules = [f"tests/test_vit_native{name}.py" for name in ("", "_int8", "_training")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", "-k", chosen]
        + modules,
        env={**os.environ, "MOJO": mojo, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
    assert "skipped" not in done.stdout.splitlines()[-1]
