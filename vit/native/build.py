"""Compile the native back ends: one shared library each, in the cache of this machine.

    build("cpu") -> .../libvit_cpu.so, and beside it the program classify

A library is found again by what it was made of: the sources, the options, and the places of what
plan.py names: libraries, and the compilers of CUDA and Mojo. After a change of one of them it has
to be built again; a tool or library that is replaced in its place is not noticed.
"""

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from support.files import cache_path, cached_folder
from vit.native import toolchain
from vit.native.plan import SOURCE, Plan, plan_of

PROGRAM = "classify"  # of the library alone


def build(backend: str, *, sanitize: bool = False) -> Path:
    """Compile a back end unless it is there already; return the path of its library.

    With `sanitize` it reports errors of memory and undefined behaviour, and stops at them.
    Raises `toolchain.Missing` if something is not on this machine, RuntimeError with the
    compiler's words if a source does not compile.
    """
    plan, name = plan_of(backend, sanitize), f"libvit_{backend}.so"
    key = plan.key

    def fill(folder: Path) -> None:
        compile_into(folder, plan, name)
        if plan.key != key:
            raise RuntimeError(f"{SOURCE} changed while it was compiled; build again")

    return cached_folder("native", key, fill) / name


def built(backend: str, *, sanitize: bool = False) -> Path:
    """The library of a back end as the sources are now; ValueError if it has to be built."""
    folder = cache_path("native", plan_of(backend, sanitize).key)
    if not folder.is_dir():
        raise ValueError(
            f"the back end {backend} is not built; run python -m vit.native build {backend}"
        )
    return folder / f"libvit_{backend}.so"


def compile_into(folder: Path, plan: Plan, name: str) -> None:
    """Compile the objects of a plan side by side, and link them; and the program with them."""
    compiler = toolchain.compiler()
    usual = (compiler, *plan.options, f"-I{SOURCE}", "-c")

    def compiled(item: tuple[str, tuple[str, ...]]) -> str:
        target, (source, *options) = str(folder / f"{item[0]}.o"), item[1]
        tool = plan.tools.get(Path(source).suffix, usual)
        run((*tool, *options, str(SOURCE / source), "-o", target))
        return target

    every = {PROGRAM: (f"{PROGRAM}.cpp",), **plan.objects}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        program, *objects = pool.map(compiled, every.items())
    library = str(folder / name)
    shared = ("-shared", f"-Wl,-soname,{name}", "-o", library)  # found by name, wherever it is
    run((compiler, *plan.options, *objects, *plan.link, *shared))
    beside = (*plan.link, "-Wl,-rpath,$ORIGIN", "-o", str(folder / PROGRAM))
    run((compiler, *plan.options, program, library, *beside))
    for each in (program, *objects):
        Path(each).unlink()


def run(command: tuple[str, ...]) -> None:
    """Run a compiler; RuntimeError has the end of what it said."""
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}\nfailed:\n{result.stderr[-4000:]}")
