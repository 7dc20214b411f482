"""A program of torch.export, model.pt2, for any batch size: it needs torch and no other code."""

import json
from pathlib import Path

import torch
from torch import Tensor

from pipeline.evaluation.model import preparation
from pipeline.export import graph
from pipeline.export.check import Network
from pipeline.export.config import ExportConfig
from pipeline.export.source import Source
from vit.batch import normalise

FILE = "model.pt2"


def write(source: Source, folder: Path, config: ExportConfig) -> None:
    """Write the program; class names and preparation are files in it."""
    known: dict[str, object] = {"preparation.json": preparation(source.images)}
    if source.classes is not None:
        known |= {"classes.json": source.classes, "names.json": list(source.labels.values())}
    files = {name: json.dumps(value) for name, value in known.items()}
    torch.export.save(graph.graph_of(source, config), folder / FILE, extra_files=files)


def opened(source: Source, folder: Path, config: ExportConfig) -> Network:
    """The program as torch loads it."""
    program = torch.export.load(folder / FILE).module()

    def network(crops: Tensor) -> Tensor:
        return program(crops if config.preprocess else normalise(crops, source.images))

    return network


def usage(source: Source, config: ExportConfig) -> str:
    """Code that classifies an image with torch, in the folder of the export."""
    return f"""\
import numpy as np
import torch
from PIL import Image

model = torch.export.load("{FILE}").module()

{graph.image_code(source, config)}
with torch.no_grad():
    {source.output} = model(torch.from_numpy(images.copy()))
{graph.name_code(source)}"""
