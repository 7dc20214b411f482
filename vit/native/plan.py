"""How each native back end is compiled: its sources, their compilers and options, and libraries."""

import hashlib
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from vit.native import toolchain

SOURCE = Path(__file__).parent / "source"
# folders of what does not depend on what computes
SHARED = ("file", "model", "training", "image")
# and the files beside them
INTERFACE = ("interface.cpp", "image_interface.cpp", "options.cpp")
FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden"),
    *("-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra"),
)
# of kernels for GPUs: binaries for Ampere and Ada, and Hopper; newer ones translate the last
CUDA_FLAGS = (
    *("-std=c++17", "-O3", "-Werror=all-warnings"),
    *("-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90,code=[sm_90,compute_90]"),
)
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover", "-g", "-O1")
# name of the kernels in C++ -> what they may use, on x86 CPUs; they are linked in this order, as
# the linker keeps the first version of each inline function, which must run everywhere
INSTRUCTIONS = {"baseline": "x86-64", "avx2": "x86-64-v3", "avx512": "x86-64-v4"}
# those of Mojo with functions for C++; they import the others
MOJO_FILES = tuple(
    "adamw attention gradients integers kernels pack product training_kernels".split()
)


@dataclass(frozen=True)
class Plan:
    """How a back end is compiled."""

    options: tuple[str, ...]
    """Of the C++ compiler: for each source that it takes as it is, and when it links."""
    objects: dict[str, tuple[str, ...]]
    """Name of an object of the library -> its source and its own options."""
    link: tuple[str, ...]
    """Libraries of the back end and where they are: for the library, and for the program."""
    tools: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Suffix of sources that the C++ compiler does not take as they are -> what compiles one: a
    command that its own options, the source and `-o` with the object follow."""

    @property
    def key(self) -> str:
        """A text that changes with all that goes into the library."""
        sources = sorted(file for file in SOURCE.rglob("*") if file.is_file())
        content = hashlib.sha256(b"\0".join(file.read_bytes() for file in sources)).hexdigest()
        return repr((content, self))


def sources(folder: str, suffix: str = ".cpp") -> dict[str, tuple[str, ...]]:
    """An object for each source in a folder."""
    files = sorted((SOURCE / folder).glob(f"*{suffix}"))
    return {file.stem: (f"{folder}/{file.name}",) for file in files}


def shared_objects(codecs: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """The objects of every back end; `codecs` turns on the readers of images."""
    objects = {Path(name).stem: (name,) for name in INTERFACE}
    for folder in SHARED:
        objects |= sources(folder)
    for name in ("jpeg_file", "png_file"):
        objects[name] += codecs
    # a product that is fused with a sum is rounded otherwise than OpenCV's
    objects["opencv_resize"] += ("-ffp-contract=off",)
    return objects


def cpu(sanitize: bool) -> Plan:
    """The back end of CPUs."""
    onednn, (codecs, readers) = toolchain.onednn(), toolchain.codecs()
    objects = shared_objects(codecs) | sources("onednn") | sources("host")
    objects["device_cpu"] = ("cpu/device_cpu.cpp",)
    sets = INSTRUCTIONS if platform.machine() in ("x86_64", "AMD64") else {"baseline": "native"}
    for name, instructions in sets.items():
        for kernels in ("kernels", "training_kernels"):
            objects[f"{kernels}_{name}"] = (
                *(f"cpu/{kernels}_cpu.cpp", f"-DVIT_ISA={name}", f"-march={instructions}"),
            )
    return Plan(
        options=(*FLAGS, "-fopenmp", *(SANITIZERS if sanitize else ()), f"-I{onednn.include}"),
        objects=objects,
        link=(f"-L{onednn.library}", "-ldnnl", f"-Wl,-rpath,{onednn.library}", *readers),
    )


def sycl(sanitize: bool) -> Plan:
    """The back end of SYCL devices; its kernels are compiled at run time, for the device."""
    onednn, runtime = toolchain.sycl_onednn(), toolchain.sycl_runtime()
    codecs, readers = toolchain.codecs()
    includes = dict.fromkeys((runtime.include, onednn.include))
    libraries = dict.fromkeys((runtime.library, onednn.library))
    opencl = runtime.library / "libintelocl.so"
    return Plan(
        options=(
            *(*FLAGS, *(SANITIZERS if sanitize else ())),
            *(f"-isystem{folder}" for folder in includes),
            *((f'-DVIT_OPENCL_CPU="{opencl}"',) if opencl.exists() else ()),
        ),
        objects=shared_objects(codecs) | sources("onednn") | sources("sycl"),
        link=(
            *(f"-L{folder}" for folder in libraries),
            *("-lsycl", "-ldnnl"),
            # these libraries find each other by the old kind of search path only
            "-Wl,--disable-new-dtags",
            *(f"-Wl,-rpath,{folder}" for folder in libraries),
            *readers,
        ),
    )


def cuda(sanitize: bool) -> Plan:
    """The back end of NVIDIA's GPUs."""
    found, (codecs, readers) = toolchain.cuda(), toolchain.codecs()
    options = (*FLAGS, *(SANITIZERS if sanitize else ()))
    includes = tuple(f"-I{folder}" for folder in found.includes)
    # nvcc has its own -std, and ends an option at a comma that is not escaped
    host = [option.replace(",", r"\,") for option in options if not option.startswith("-std=")]
    return Plan(
        options=(*options, *includes),
        objects=shared_objects(codecs) | sources("cuda", ".cu") | sources("cuda/gpu"),
        link=(
            *map(str, found.libraries),
            *dict.fromkeys(f"-Wl,-rpath,{library.parent}" for library in found.libraries),
            *readers,
        ),
        tools={
            ".cu": (
                *(found.nvcc, *CUDA_FLAGS, f"-ccbin={toolchain.compiler()}"),
                *(f"-Xcompiler={','.join(host)}", *includes, f"-I{SOURCE}", "-c"),
            )
        },
    )


def cuda_host(sanitize: bool) -> Plan:
    """The kernels of `cuda` as C++, on a CPU: for their tests."""
    codecs, readers = toolchain.codecs()
    options = (*FLAGS, "-fopenmp", *(SANITIZERS if sanitize else ()))
    # sums in any order, as threads of a GPU add them up, so that they are computed in vectors: of
    # AVX2, which all CPUs have that tests run on
    machine = "x86-64-v3" if platform.machine() in ("x86_64", "AMD64") else "native"
    return Plan(
        options=options,
        objects={
            **shared_objects(codecs),
            **sources("host"),
            **sources("cuda/host"),
            **sources("cuda", ".cu"),
        },
        link=readers,
        tools={
            ".cu": (
                *(toolchain.compiler(), *options, f"-march={machine}", "-fassociative-math"),
                *("-fno-signed-zeros", f"-I{SOURCE}", "-x", "c++", "-c"),
            )
        },
    )


def mojo(sanitize: bool) -> Plan:
    """The back end in Mojo, for the processor of this machine; C++ hands out its work."""
    compiler, (codecs, readers) = toolchain.mojo(), toolchain.codecs()
    return Plan(
        options=(*FLAGS, "-fopenmp", *(SANITIZERS if sanitize else ())),
        objects={
            **shared_objects(codecs),
            **sources("host"),
            **sources("mojo"),
            **{name: (f"mojo/{name}.mojo",) for name in MOJO_FILES},
        },
        link=readers,
        tools={
            # a product and a sum are one operation only where the source says so
            ".mojo": (
                *(compiler.program, *"build --emit object --fp-mode contract=off".split()),
                *(*compiler.target, *(("--sanitize", "address") if sanitize else ())),
            )
        },
    )


BACKENDS: dict[str, Callable[[bool], Plan]] = {
    "cpu": cpu,
    "sycl": sycl,
    "cuda": cuda,
    "cuda-host": cuda_host,
    "mojo": mojo,
}


def plan_of(backend: str, sanitize: bool) -> Plan:
    """How a back end is compiled here; `toolchain.Missing` names what is not there."""
    if backend not in BACKENDS:
        raise ValueError(f"unknown back end {backend!r}; known: {', '.join(BACKENDS)}")
    return BACKENDS[backend](sanitize)
