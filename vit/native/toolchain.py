"""What a machine has to compile with: a C++ compiler, oneDNN, and readers of image files.

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


class Missing(ValueError):
    """A tool or library that is not on this machine, and how to get it."""


@dataclass(frozen=True)
class OneDNN:
    """An installed oneDNN."""

    include: Path
    library: Path
    """Folder of libdnnl.so."""
    version: str


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
    """oneDNN in the folder DNNLROOT, else of this Python environment, else of the system."""
    root = os.environ.get("DNNLROOT")
    for place in [Path(root)] if root else places():
        header = place / "include/oneapi/dnnl/dnnl_version.h"
        libraries = [f for folder in ("lib", "lib64") for f in place.glob(f"{folder}/libdnnl.so.3")]
        if not header.is_file() or not libraries:
            continue
        version = ".".join(re.findall(r"define DNNL_VERSION_M\w+R? +(\d+)", header.read_text())[:2])
        if int(version.partition(".")[0]) >= OLDEST:
            return OneDNN(place / "include", libraries[0].parent, version)
    where = f"in DNNLROOT ({root})" if root else "in this Python environment or the system"
    raise Missing(
        f"oneDNN {OLDEST} or newer is not {where}; install it with"
        " pip install 'vit-pretraining[native]', or set DNNLROOT to its folder"
    )


def codecs() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Options that compile and link the readers of images that are here; without, none is used."""
    compiled, linked = [], []
    for header, (macro, library) in CODECS.items():
        place = next((p for p in places() if (p / "include" / header).is_file()), None)
        if place:
            compiled += [f"-D{macro}", f"-I{place / 'include'}"]
            linked += [f"-L{place / 'lib'}", f"-Wl,-rpath,{place / 'lib'}", f"-l{library}"]
    return tuple(compiled), tuple(linked)
