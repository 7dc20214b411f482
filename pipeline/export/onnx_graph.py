"""An ONNX graph, model.onnx, for any batch size; class names and preparation are its metadata.

Weights of more than 2 GB, protobuf's limit, lie beside it in model.onnx.data.
"""

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

FILE = "model.onnx"
# bytes of weights that a file may hold besides its graph; protobuf reads less than 2^31
MOST_BYTES = 2_000_000_000


def write(source: Source, folder: Path, config: ExportConfig) -> None:
    """Write the graph."""
    program = torch.onnx.export(
        graph.graph_of(source, config),
        dynamo=True,
        verbose=False,
        input_names=[graph.INPUT],
        output_names=[source.output],
        dynamic_shapes=({0: "batch"},),  # the name of the axis
    )
    program.model.metadata_props.update(metadata(source, config))
    size = sum(tensor.nbytes for tensor in source.model.state_dict().values())
    program.save(str(folder / FILE), external_data=size > MOST_BYTES)


def metadata(source: Source, config: ExportConfig) -> dict[str, str]:
    """What the file says of its inputs and outputs, each as JSON."""
    known: dict[str, object] = {
        "preparation": preparation(source.images),
        "normalises": config.preprocess,
    }
    if source.classes is not None:
        known |= {"classes": source.classes, "names": list(source.labels.values())}
    return {name: json.dumps(value) for name, value in known.items()}


def opened(source: Source, folder: Path, config: ExportConfig) -> Network:
    """The graph in ONNX Runtime, on the CPU."""
    import onnxruntime

    path = str(folder / FILE)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def network(crops: Tensor) -> Tensor:
        images = crops if config.preprocess else normalise(crops, source.images)
        (outputs,) = session.run(None, {graph.INPUT: images.contiguous().numpy()})
        return torch.from_numpy(outputs)

    return network


def usage(source: Source, config: ExportConfig) -> str:
    """Code that classifies an image with ONNX Runtime, in the folder of the export."""
    return f"""\
import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession("{FILE}")

{graph.image_code(source, config)}
({source.output},) = session.run(None, {{"{graph.INPUT}": images}})
{graph.name_code(source)}"""
