"""What a machine has to compile with: a C++ compiler and oneDNN.

What is missing raises `Missing`, which says how to get it.
"""

import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

COMPILERS = ("g++", "c++", "clang++")
OLDEST = 3  # major version of oneDNN: the first with scales as arguments


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


def onednn() -> OneDNN:
    """oneDNN in the folder DNNLROOT, else of this Python environment, else of the system."""
    root = os.environ.get("DNNLROOT")
    for place in [Path(root)] if root else [Path(sys.prefix), Path("/usr/local"), Path("/usr")]:
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
