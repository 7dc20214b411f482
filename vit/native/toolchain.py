"""What a machine has to compile with: compilers, oneDNN, SYCL, cuBLAS, and readers of images.

What is missing and needed raises `Missing`, which says how to get it.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path

COMPILERS = ("g++", "c++", "clang++")
# versions of oneDNN: the first with scales as arguments
OLDEST = (3, 0)
OLDEST_SYCL = (3, 13)  # products of 3.11 over a single value are wrong, and some write too far
# of the language of Mojo, which changes with each
MOJO = (1, 2)
# header of each library that reads images -> macro that turns it on, and the library
CODECS = {"jpeglib.h": ("VIT_JPEG", "jpeg"), "png.h": ("VIT_PNG", "png")}

SYCL_ADVICE = (
    "install both into a Python environment of their own, as they have files of the names of the"
    " extra 'native': pip install 'vit-pretraining[sycl]', then, as its dependencies are newer,"
    " pip install --no-deps onednn==2026.1.0 onednn-devel==2026.1.0; and set ONEAPI_ROOT to it, or"
    " to an installed oneAPI"
)
MOJO_ADVICE = (
    "install it with pip install 'vit-pretraining[mojo]', or set MOJO to the program mojo of an"
    f" installed Mojo {MOJO[0]}.{MOJO[1]}"
)
PRINT_TARGET = ("build", "--print-effective-target")
# libraries of CUDA that a back end is linked with -> the header of each
CUDA_PARTS = {"cudart": "cuda_runtime_api.h", "cublas": "cublas_v2.h", "cublasLt": "cublasLt.h"}
CUDA_ADVICE = (
    "install it with pip install 'vit-pretraining[cuda]', or set CUDA_HOME to the folder of an"
    " installed CUDA toolkit"
)


class Missing(ValueError):
    """A tool or library that is not on this machine, and how to get it."""


@dataclass(frozen=True)
class OneDNN:
    """An installed oneDNN."""

    include: Path
    library: Path
    """Folder of libdnnl.so."""
    version: tuple[int, int]
    sycl: bool
    """Built for SYCL, and not for plain CPUs; both kinds have the same names of files."""


@dataclass(frozen=True)
class Mojo:
    """An installed compiler of Mojo."""

    program: str
    target: tuple[str, ...]
    """Options that name this machine's processor and its sets of instructions."""


@dataclass(frozen=True)
class Sycl:
    """Installed headers and libraries of SYCL."""

    include: Path
    library: Path


@dataclass(frozen=True)
class Cuda:
    """What compiles for NVIDIA's GPUs, and what multiplies on them."""

    nvcc: str
    includes: tuple[Path, ...]
    libraries: tuple[Path, ...]
    """Files: the runtime and cuBLAS."""


def compiler() -> str:
    """Path of the C++ compiler: that of the environment variable CXX, else the first known."""
    if wanted := program_of("CXX"):
        return wanted
    for name in COMPILERS:
        if found := shutil.which(name):
            return found
    raise Missing(f"there is no C++ compiler ({', '.join(COMPILERS)}); install g++, or set CXX")


def program_of(variable: str, advice: str = "", path: str | None = None) -> str | None:
    """The program that an environment variable names, if it is set; it has to be there."""
    wanted = os.environ.get(variable)
    if not wanted:
        return None
    if found := shutil.which(wanted, path=path):
        return found
    after = f"; {advice}" if advice else ""
    raise Missing(f"{variable} is {wanted!r}, which is not a program on this machine{after}")


def mojo() -> Mojo:
    """Find Mojo's compiler: the environment variable MOJO, else this environment's, else PATH's."""
    folders = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    program = program_of("MOJO", MOJO_ADVICE) or shutil.which("mojo", path=folders)
    if not program:
        raise Missing(f"there is no Mojo on this machine; {MOJO_ADVICE}")
    return described_mojo(program)


@cache
def described_mojo(program: str) -> Mojo:
    """What a compiler of Mojo is, if it is one of the version that the sources are written in."""
    said = output_of(program, "--version").partition("\n")[0]
    numbers = re.match(r"Mojo (\d+)\.(\d+)", said)
    if not numbers or tuple(map(int, numbers.groups())) != MOJO:
        raise Missing(f"{program} is {said!r}, but Mojo {dotted(MOJO)} is needed; {MOJO_ADVICE}")
    target = re.findall(r"--target-(?:cpu|features) +\S+", output_of(program, *PRINT_TARGET))
    return Mojo(program, tuple(word for option in target for word in option.split()))


def output_of(program: str, *arguments: str) -> str:
    """What a program prints; empty if it cannot, as one that is of another kind may."""
    try:
        result = subprocess.run((program, *arguments), capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return result.stdout.strip()


def places() -> list[Path]:
    """Where headers and libraries may be: this Python environment, then the system."""
    return [Path(sys.prefix), Path("/usr/local"), Path("/usr")]


def onednn() -> OneDNN:
    """Find oneDNN for CPUs: in DNNLROOT, else in this environment, else in the system."""
    root = os.environ.get("DNNLROOT")
    for place in [Path(root)] if root else places():
        found = installed_onednn(place)
        if found and not found.sycl and found.version >= OLDEST:
            return found
    where = f"in DNNLROOT ({root})" if root else "in this Python environment or the system"
    raise Missing(
        f"oneDNN {dotted(OLDEST)} or newer for CPUs is not {where}; install it with"
        " pip install 'vit-pretraining[native]', or set DNNLROOT to its folder"
    )


def sycl_onednn() -> OneDNN:
    """Find oneDNN for SYCL below the folders of `oneapi`."""
    for folder in (place / part for place in oneapi() for part in ("dnnl/latest", "")):
        found = installed_onednn(folder)
        if found and found.sycl and found.version >= OLDEST_SYCL:
            return found
    wanted = f"oneDNN {dotted(OLDEST_SYCL)} or newer for SYCL"
    raise Missing(f"{wanted} is not in {named(oneapi())}; {SYCL_ADVICE}")


def sycl_runtime() -> Sycl:
    """Find SYCL's headers and library below the folders of `oneapi`."""
    for place in oneapi():
        for part in ("compiler/latest", ""):
            include, library = place / part / "include", place / part / "lib"
            if not (include / "sycl/sycl.hpp").is_file() or not (library / "libsycl.so").exists():
                continue
            # kernels are compiled at run time, for which a separate library is loaded
            if any(library.glob("libsycl-jit.so*")):
                return Sycl(include, library)
    raise Missing(f"SYCL with its run-time compiler is not in {named(oneapi())}; {SYCL_ADVICE}")


def oneapi() -> list[Path]:
    """Where SYCL is looked for: ONEAPI_ROOT, the folder of oneAPI or of a Python environment.

    Without it, this Python environment and the folder that oneAPI is usually installed into.
    """
    root = os.environ.get("ONEAPI_ROOT")
    return [Path(root)] if root else [Path(sys.prefix), Path("/opt/intel/oneapi")]


def cuda() -> Cuda:
    """Find nvcc, CUDA's runtime and cuBLAS.

    nvcc is that of the environment variable NVCC, else that of CUDA_HOME or, if this is not set, of
    this Python environment or /usr/local/cuda, else that of PATH. The others are first looked for
    beside nvcc, then in these places, and last in this Python environment.
    """
    home = os.environ.get("CUDA_HOME")
    packages = sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/cu*"), reverse=True)
    roots = [Path(home)] if home else [*packages, Path("/usr/local/cuda")]
    path = os.pathsep.join([*(str(root / "bin") for root in roots), os.environ.get("PATH", "")])
    nvcc = program_of("NVCC", CUDA_ADVICE, path) or shutil.which("nvcc", path=path)
    if not nvcc:
        raise Missing(
            f"nvcc, the compiler of CUDA, is not in {named(roots)}, nor in PATH; {CUDA_ADVICE}"
        )
    roots = list(dict.fromkeys([Path(nvcc).resolve().parent.parent, *roots, *packages]))
    parts = {name: cuda_part(roots, name, header) for name, header in CUDA_PARTS.items()}
    if missing := [name for name, part in parts.items() if not part]:
        raise Missing(
            f"of CUDA, {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not in"
            f" {named(roots)}; {CUDA_ADVICE}"
        )
    found = [part for part in parts.values() if part]
    return Cuda(
        nvcc, tuple(dict.fromkeys(part[0] for part in found)), tuple(part[1] for part in found)
    )


def cuda_part(roots: list[Path], name: str, header: str) -> tuple[Path, Path] | None:
    """Folder of the headers and file of a library of CUDA, if one of the folders has both."""
    folders = ("lib64", "lib", f"lib/{platform.machine()}-linux-gnu")
    for root in roots:
        for library in (file for at in folders for file in root.glob(f"{at}/lib{name}.so*")):
            if (root / "include" / header).is_file():
                return root / "include", library
    return None


def named(folders: list[Path]) -> str:
    """The folders that were looked into, for a message."""
    return " or ".join(map(str, folders))


def installed_onednn(place: Path) -> OneDNN | None:
    """What is installed below a folder; None if it is not oneDNN."""
    include = place / "include/oneapi/dnnl"
    libraries = [f for folder in ("lib", "lib64") for f in place.glob(f"{folder}/libdnnl.so.3")]
    if not (include / "dnnl_version.h").is_file() or not libraries:
        return None
    header, config = (include / f"dnnl_{name}.h" for name in ("version", "config"))
    numbers = re.findall(r"define DNNL_VERSION_M\w+R? +(\d+)", header.read_text())
    return OneDNN(
        include=place / "include",
        library=libraries[0].parent,
        version=(int(numbers[0]), int(numbers[1])),
        sycl="DNNL_CPU_RUNTIME DNNL_RUNTIME_SYCL" in config.read_text(),
    )


def dotted(version: tuple[int, int]) -> str:
    """A version as it is written."""
    return ".".join(map(str, version))


def codecs() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Options that compile and link the readers of images that are here; without, none is used."""
    compiled, linked = [], []
    for header, (macro, library) in CODECS.items():
        place = next((p for p in places() if (p / "include" / header).is_file()), None)
        if place:
            compiled += [f"-D{macro}", f"-I{place / 'include'}"]
            linked += [f"-L{place / 'lib'}", f"-Wl,-rpath,{place / 'lib'}", f"-l{library}"]
    return tuple(compiled), tuple(linked)
