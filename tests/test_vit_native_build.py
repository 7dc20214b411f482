"""A back end is built once, whole or not at all; without its tools all else works and says so."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vit.native import build, toolchain
from vit.native.plan import BACKENDS, Plan, plan_of

ROOT = Path(__file__).parent.parent
NOWHERE = "/nonexistent"
MISSING = {
    "no compiler": ("cpu", {"CXX": NOWHERE}, "CXX is '/nonexistent', which is not a program"),
    "no oneDNN": ("cpu", {"DNNLROOT": NOWHERE}, "oneDNN 3.0 or newer for CPUs is not in DNNLROOT"),
    "no nvcc": ("cuda", {"NVCC": NOWHERE}, "NVCC is '/nonexistent', which is not a program"),
    "no CUDA": ("cuda", {"CUDA_HOME": NOWHERE, "PATH": ""}, "is not in /nonexistent, nor in PATH"),
    "no SYCL": ("sycl", {"ONEAPI_ROOT": NOWHERE}, "is not in /nonexistent"),
    "no Mojo": ("mojo", {"MOJO": NOWHERE}, "MOJO is '/nonexistent', which is not a program"),
}
UNKNOWN = {name: (name, {}, f"unknown back end '{name}'; known: cpu") for name in ("metal",)}


def python(tmp_path, *arguments, **environment):
    """Run Python with an empty cache."""
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path), **environment},
        cwd=ROOT,
        timeout=120,
        check=False,
    )


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Folder of the sources of a back end that compiles in a moment, with a cache of its own."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "answer.cpp").write_text('extern "C" int answer() { return 42; }\n')
    (folder / "classify.cpp").write_text('extern "C" int answer(); int main() { answer(); }\n')
    plan = Plan(options=("-fPIC",), objects={"answer": ("answer.cpp",)}, link=())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for module in ("build", "plan"):
        monkeypatch.setattr(f"vit.native.{module}.SOURCE", folder)
    monkeypatch.setitem(BACKENDS, "toy", lambda sanitize: plan)
    try:
        toolchain.compiler()
    except toolchain.Missing as missing:
        pytest.skip(str(missing))
    return folder


def cached(tmp_path):
    """What the cache has: finished libraries and remains of others."""
    return [path.name for path in tmp_path.glob("cache/vit-pipeline/*/native/*")]


@pytest.mark.parametrize(("backend", "environment", "words"), (MISSING | UNKNOWN).values())
def test_a_build_without_its_tools_names_what_is_missing(tmp_path, backend, environment, words):
    result = python(tmp_path, "-m", "vit.native", "build", backend, **environment)
    assert result.returncode == 2
    assert words in result.stderr and result.stderr.startswith("error: ")
    assert "Traceback" not in result.stderr and len(result.stderr.splitlines()) == 1


def test_what_is_missing_says_how_to_get_it(monkeypatch):
    monkeypatch.setenv("DNNLROOT", NOWHERE)
    with pytest.raises(toolchain.Missing, match=r"pip install 'vit-pretraining\[native\]', or set"):
        plan_of("cpu", sanitize=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", NOWHERE)
    with pytest.raises(toolchain.Missing, match=r"no C\+\+ compiler \(.*\); install g\+\+, or set"):
        toolchain.compiler()


@pytest.mark.parametrize("name", ["CXX", "DNNLROOT"])
def test_tests_of_a_back_end_that_cannot_be_built_are_skipped_with_the_reason(tmp_path, name):
    chosen = ("tests/test_vit_native_files.py", "-k", "cpu and leads_nowhere", "-n", "0")
    result = python(tmp_path, "-m", "pytest", *chosen, "-p", "no:cacheprovider", **{name: NOWHERE})
    assert result.returncode == 0, result.stdout + result.stderr
    assert "1 skipped" in result.stdout and NOWHERE in result.stdout


def test_a_model_of_a_back_end_that_is_not_built_says_how_to_build_it(tmp_path):
    code = "from vit.native.model import NativeViT; NativeViT.open('checkpoint', backend='cpu')"
    result = python(tmp_path, "-c", code)
    said = result.stderr.splitlines()[-1]
    assert "run python -m vit.native build cpu" in said or "oneDNN" in said


def test_a_library_is_built_once_and_again_after_a_change(toy, tmp_path):
    with pytest.raises(ValueError, match="run python -m vit.native build toy"):
        build.built("toy")
    first = build.build("toy")
    assert first == build.built("toy") == build.build("toy")
    assert sorted(path.name for path in first.parent.iterdir()) == ["classify", "libvit_toy.so"]
    (toy / "answer.cpp").write_text('extern "C" int answer() { return 43; }\n')
    with pytest.raises(ValueError, match="build toy"):
        build.built("toy")
    assert build.build("toy") != first
    assert len(cached(tmp_path)) == 2


def test_two_builds_at_once_end_with_one_library(toy, tmp_path):
    paths, start = [], threading.Barrier(3)

    def one():
        start.wait()
        paths.append(build.build("toy"))

    threads = [threading.Thread(target=one) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 3 and len(set(paths)) == 1
    assert cached(tmp_path) == [paths[0].parent.name]


def test_a_source_that_changes_meanwhile_leaves_no_library(toy, tmp_path, monkeypatch):
    """Its name would be that of other sources."""
    run = build.run

    def changing(command):
        run(command)
        (toy / "answer.cpp").write_text("")

    monkeypatch.setattr(build, "run", changing)
    with pytest.raises(RuntimeError, match="changed while it was compiled; build again"):
        build.build("toy")
    assert cached(tmp_path) == []


@pytest.mark.parametrize("name", ["answer.cpp", "classify.cpp"])
def test_a_source_that_does_not_compile_leaves_no_library(toy, tmp_path, name):
    (toy / name).write_text("this is no C++;\n")
    with pytest.raises(RuntimeError, match=r"failed:[^$]*error:"):
        build.build("toy")
    assert cached(tmp_path) == []


def test_a_compiler_that_fails_is_a_failure_with_its_words(tmp_path):
    """As on a full disk: what it had written is not taken for a library."""
    compiler = tmp_path / "compiler"
    compiler.write_text(
        '#!/bin/sh\nfor each; do target=$each; done\necho half > "$target"\n'
        'echo "fatal error: No space left on device" >&2\nexit 1\n'
    )
    compiler.chmod(0o755)
    oneapi = tmp_path / "include/oneapi/dnnl"
    oneapi.mkdir(parents=True)
    (oneapi / "dnnl_version.h").write_text(
        "#define DNNL_VERSION_MAJOR 3\n#define DNNL_VERSION_MINOR 2\n"
    )
    (oneapi / "dnnl_config.h").write_text("")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/libdnnl.so.3").touch()
    tools = {"CXX": str(compiler), "DNNLROOT": str(tmp_path)}
    result = python(tmp_path / "cache", "-m", "vit.native", "build", "cpu", **tools)
    assert result.returncode == 1
    assert "No space left on device" in result.stderr and "Traceback" not in result.stderr
    assert cached(tmp_path) == []


def test_a_cache_that_cannot_be_written_is_named(toy, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file, no folder\n")
    with pytest.raises(OSError, match=str(tmp_path / "cache")):
        build.build("toy")
    if os.geteuid():
        (tmp_path / "closed").mkdir(mode=0o500)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "closed"))
        with pytest.raises(PermissionError, match="closed"):
            build.build("toy")
