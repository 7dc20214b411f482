"""The formats that a checkpoint is exported to.

To add one, write a module and add a row to FORMATS. A module has three functions:

    write(source, folder, config)           writes the files into an empty folder
    opened(source, folder, config)          opens them as a user would: a function from crops
                                            (B, S, S, 3) uint8 to outputs (B, K), or (B, D)
    usage(source, config)                   Python code, for the model card, that does so

It is imported only when it is used, so that a command line is checked without slow imports.
"""

import importlib.util
from dataclasses import dataclass
from types import ModuleType


@dataclass(frozen=True, kw_only=True)
class Format:
    """One format."""

    summary: str
    """What is written, in one line."""
    module: str
    """Module of the three functions."""
    library: str | None
    """Module of the library that opens the files; where it cannot be imported, or if None, this
    project reads them back."""
    options: tuple[str, ...] = ()
    """Settings of ExportConfig that have an effect here, and not everywhere."""
    needs: tuple[str, ...] = ()
    """Packages without which the files cannot be written and checked."""
    extra: str | None = None
    """Extra of this project's distribution that installs them."""
    images: int = 16
    """Images that are read, to write and to check it."""
    tolerance: float = 1e-4
    """Largest difference to this project's outputs, as a share of the largest output; float32
    rounds sums by about 1e-6 of it."""

    @property
    def package(self) -> str | None:
        """The library."""
        return self.library and self.library.partition(".")[0]

    def functions(self) -> ModuleType:
        """The module; ValueError if a package is missing that it needs."""
        missing = [name for name in self.needs if not importlib.util.find_spec(name)]
        if missing:
            raise ValueError(
                f"{', '.join(missing)} is not installed, which this format needs; install it with:"
                f" pip install 'vit-pretraining[{self.extra}]'"
            )
        return importlib.import_module(self.module)


FORMATS = {
    "timm": Format(
        summary="timm: a folder for timm.create_model('local-dir:DIR')",
        module="pipeline.export.timm_folder",
        library="timm",
        options=("head",),
    ),
    "transformers": Format(
        summary="transformers: ViT or DINOv2 with its image processor",
        module="pipeline.export.transformers_folder",
        # transformers itself imports lazily, and would fail later
        library="transformers.models.auto.image_processing_auto",
        options=("head",),
    ),
    "npz": Format(
        summary="Google's JAX code: vision_transformer and AugReg, or big_vision",
        module="pipeline.export.google_npz",
        library=None,
        options=("layout",),
    ),
    "onnx": Format(
        summary="an ONNX graph for any batch size",
        module="pipeline.export.onnx_graph",
        library="onnxruntime",
        options=("head", "preprocess"),
        needs=("onnx", "onnxscript", "onnxruntime"),
        extra="onnx",
    ),
    "torch": Format(
        summary="a program of torch.export (.pt2) for any batch size, without this project's code",
        module="pipeline.export.torch_program",
        library="torch",
        options=("head", "preprocess"),
    ),
    "int8": Format(
        summary="an 8-bit model of torchao, for vit.quant.load_quantised",
        module="pipeline.export.int8_model",
        library=None,
        options=("scheme",),
        needs=("torchao",),
        extra="quant",
        images=128,  # on which the ranges of activations are measured
        tolerance=0.3,
    ),
}
