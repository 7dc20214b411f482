"""A file for Google's JAX code, model.npz, in the layout of vision_transformer or of big_vision.

That code is no library that could be installed and called, so this project reads the file back, and
computes as that code does: GELU in its tanh form, LayerNorm's epsilon 1e-6.
"""

from pathlib import Path

from pipeline.export.check import Network, read_back
from pipeline.export.config import ExportConfig
from pipeline.export.source import Source
from vit.dialects import DIALECTS, check_says
from vit.weights import save_weights

FILE = "model.npz"


def write(source: Source, folder: Path, config: ExportConfig) -> None:
    """Write the file; ValueError names the settings of the model that Google's code lacks."""
    dialect = f"npz-{config.layout}"
    check_says(source.config, dialect)
    if source.config.gelu != (theirs := DIALECTS[dialect].gelu):
        raise ValueError(
            f"Google's code computes gelu={theirs} and this model {source.config.gelu}, so outputs"
            f" would differ; fine-tune with --model.gelu {theirs}, or export to another format"
        )
    save_weights(folder / FILE, source.model, dialect)


def opened(source: Source, folder: Path, config: ExportConfig) -> Network:
    """The model that Google's code would compute."""
    return read_back(source, folder / FILE)


def usage(source: Source, config: ExportConfig) -> str:
    """Code that reads the arrays, in the folder of the export."""
    return f"""\
import numpy as np

with np.load("{FILE}") as file:
    params = dict(file)  # names of the layers of {config.layout}, joined by /
"""
