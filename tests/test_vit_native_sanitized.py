"""The native back end of CPUs stays within its memory, and within what C++ defines.

The other tests of native back ends run once more, in a process whose library stops at such an
error. What oneDNN compiles while it runs is not watched.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from native_backends import SANITIZE

from vit.native import build, toolchain

pytestmark = pytest.mark.slow
FOLDER = Path(__file__).parent
# models of published sizes, and one that is trained first; processes without such a library; and
# memory, which the sanitiser keeps for a while
LEFT_OUT = (
    "each_size or published_shapes or accuracy or without_vnni or cpu-command or leaves_no_memory"
)


def preloaded():
    """The libraries that a sanitised library needs before all others, in a program without them."""
    found = []
    for name in ("libasan.so", "libstdc++.so"):
        command = [toolchain.compiler(), f"-print-file-name={name}"]
        path = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout[:-1])
        if not path.is_absolute():
            pytest.skip(f"the compiler has no {name}")
        found.append(str(path))
    return ":".join(found)


@pytest.fixture(scope="module")
def library():
    """The sanitised library of CPUs."""
    try:
        return build.build("cpu", sanitize=True)
    except toolchain.Missing as missing:
        pytest.skip(str(missing))


def test_the_tests_of_native_back_ends_pass_with_sanitisers(library):
    content = library.read_bytes()
    assert b"__asan_report" in content and b"__ubsan_handle" in content
    modules = sorted(FOLDER.glob("test_vit_native*.py"))
    for name in ("build", "cuda", "mojo", "sanitized", "sycl"):  # not of the back end of CPUs
        modules.remove(FOLDER / f"test_vit_native_{name}.py")
    environment = os.environ | {
        "LD_PRELOAD": preloaded(),
        # Python itself leaves memory to the end of the process
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        SANITIZE: "1",
    }
    # -s: what the sanitiser says when it ends the process would be lost in pytest's capture
    chosen = ("-s", "-k", f"cpu and not ({LEFT_OUT})", "-n", "0", "-p", "no:cacheprovider")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *chosen, *map(str, modules)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=FOLDER.parent,
        timeout=500,
        check=False,
    )
    said = result.stdout[-8000:] + result.stderr[-8000:]
    assert result.returncode == 0, said
    assert int(re.search(r"(\d+) passed", said)[1]) > 200, said
