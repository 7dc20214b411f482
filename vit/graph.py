"""A model as a graph of torch.export, for any batch size: tensors and operations without code."""

import torch
from torch import nn

# largest batch that a graph accepts
MOST = 65_536


def graph_of(
    model: nn.Module, image: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> torch.export.ExportedProgram:
    """The graph of a model whose input is images of one shape; the batch is its first axis."""
    # two images, as one would fix the batch size; files keep them, so they are none of the data
    example = torch.zeros(2, *image, dtype=dtype)
    batch = torch.export.Dim("batch", min=1, max=MOST)
    program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine, half of a small file
    return program
