"""What a machine has to compile with: a compiler, oneDNN, SYCL, and readers of image files.

What is missing and needed raises `Missing`, which says how to get it.
"""

import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

COMPILERS = ("g++", "c++", "clang++")
OLDEST = 3  # major version of oneDNN: the first with scales as arguments
# header of each library that reads images -> macro that turns it on, and the library
CODECS = {"jpeglib.h": ("VIT_JPEG", "jpeg"), "png.h": ("VIT_PNG", "png")}

SYCL_ADVICE = (
    "install both with pip install 'vit-pretraining[sycl]' into a Python environment of their own,"
    " as they have files of the names of the extra 'native', and set ONEAPI_ROOT to it; or set"
    " ONEAPI_ROOT to an installed oneAPI"
)


class Missing(ValueError):
    """A tool or library that is not on this machine, and how to get it."""


@dataclass(frozen=True)
class OneDNN:
    """An installed oneDNN."""

    include: Path
    library: Path
    """Folder of libdnnl.so."""
    version: str
    sycl: bool
    """Built for SYCL, and not for plain CPUs; both kinds have the same names of files."""


@dataclass(frozen=True)
class Sycl:
    """Installed headers and libraries of SYCL."""

    include: Path
    library: Path


def compiler() -> str:
    """Path of the C++ compiler: that of the environment variable CXX, else the first known."""
    if wanted := os.environ.get("CXX"):
        if found := shutil.which(wanted):
            return found
        raise Missing(f"CXX is {wanted!r}, which is not a program on this machine")
    for name in COMPILERS:
        if found := shutil.which(name):
            return found
    raise Missing(f"there is no C++ compiler ({', '.join(COMPILERS)}); install g++, or set CXX")


def places() -> list[Path]:
    """Where headers and libraries may be: this Python environment, then the system."""
    return [Path(sys.prefix), Path("/usr/local"), Path("/usr")]


def onednn() -> OneDNN:
    """Find oneDNN for CPUs: in DNNLROOT, else in this environment, else in the system."""
    root = os.environ.get("DNNLROOT")
    folders = [Path(root)] if root else places()
    for found in filter(None, map(installed_onednn, folders)):
        if not found.sycl:
            return found
    where = f"in DNNLROOT ({root})" if root else "in this Python environment or the system"
    raise Missing(
        f"oneDNN {OLDEST} or newer for CPUs is not {where}; install it with"
        " pip install 'vit-pretraining[native]', or set DNNLROOT to its folder"
    )


def sycl_onednn() -> OneDNN:
    """Find oneDNN for SYCL below the folders of `oneapi`."""
    folders = [place / part for place in oneapi() for part in ("dnnl/latest", "")]
    for found in filter(None, map(installed_onednn, folders)):
        if found.sycl:
            return found
    raise Missing(f"oneDNN for SYCL is not in {named(oneapi())}; {SYCL_ADVICE}")


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


def named(folders: list[Path]) -> str:
    """The folders that were looked into, for a message."""
    return " or ".join(map(str, folders))


def installed_onednn(place: Path) -> OneDNN | None:
    """What is installed below a folder; None if it is not oneDNN, or is too old."""
    include = place / "include/oneapi/dnnl"
    libraries = [f for folder in ("lib", "lib64") for f in place.glob(f"{folder}/libdnnl.so.3")]
    if not (include / "dnnl_version.h").is_file() or not libraries:
        return None
    numbers = re.findall(
        r"define DNNL_VERSION_M\w+R? +(\d+)", (include / "dnnl_version.h").read_text()
    )
    if int(numbers[0]) < OLDEST:
        return None
    sycl = "DNNL_CPU_RUNTIME DNNL_RUNTIME_SYCL" in (include / "dnnl_config.h").read_text()
    return OneDNN(include.parent.parent, libraries[0].parent, ".".join(numbers[:2]), sycl)


def codecs() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Options that compile and link the readers of images that are here; without, none is used."""
    compiled, linked = [], []
    for header, (macro, library) in CODECS.items():
        place = next((p for p in places() if (p / "include" / header).is_file()), None)
        if place:
            compiled += [f"-D{macro}", f"-I{place / 'include'}"]
            linked += [f"-L{place / 'lib'}", f"-Wl,-rpath,{place / 'lib'}", f"-l{library}"]
    return tuple(compiled), tuple(linked)
