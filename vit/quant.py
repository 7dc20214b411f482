"""Quantised inference of a trained ViT: smaller, and faster where the device has the kernels.

    model -> quantise(model, scheme, calibration=...) -> QuantisedViT: images (B, 3, S, S) -> (B, K)

Every dense layer is quantised, but not the patch embedding, whose inputs are pixels. `refusal`
gives the reason if the device cannot run a scheme or would run it slower than the original model.
Needs the optional extra "quant".

    int8-static   x86 CPUs              weights and activations, ranges from calibration images
    int8-dynamic  CUDA, CPUs with VNNI  weights and activations, ranges computed for each token
    float8        CUDA                  the same in 8-bit floating point
    int8-weight   any                   only weights: a quarter of the size, not faster
"""

import json
import pickle
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path

import torch
import torch._inductor.config as inductor
import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
from torch import Tensor, fx, nn
from torchao.quantization import (
    Float8DynamicActivationFloat8WeightConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    PerRow,
    quantize_,
)
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.utils import should_reduce_range

from support.files import written
from vit.config import ViTConfig
from vit.graph import graph_of
from vit.model import ViT

STATIC = "int8-static"
TORCHAO = {
    "int8-dynamic": Int8DynamicActivationInt8WeightConfig,
    "float8": lambda: Float8DynamicActivationFloat8WeightConfig(granularity=PerRow()),
    "int8-weight": Int8WeightOnlyConfig,
}
SCHEMES = (STATIC, *TORCHAO)
CAPABILITY = {"int8-dynamic": (8, 0), "float8": (8, 9)}  # minimum CUDA capability


def refusal(scheme: str, device: torch.device | str = "cpu") -> str | None:
    """The reason why a device cannot use a scheme; None if it can."""
    device = torch.device(device)
    if scheme not in SCHEMES:
        return f"unknown scheme {scheme!r}; known: {', '.join(SCHEMES)}"
    if device.type == "cpu":
        return cpu_refusal(scheme)
    if scheme == STATIC:
        return f"int8-static is for x86 CPUs, not for {device.type}; choose int8-dynamic or float8"
    if scheme in CAPABILITY and device.type != "cuda":
        return f"{scheme} has no kernels on {device.type}; choose int8-weight"
    if scheme in CAPABILITY:
        capability = torch.cuda.get_device_capability(device)
        if capability < CAPABILITY[scheme]:
            minimum, actual = (".".join(map(str, c)) for c in (CAPABILITY[scheme], capability))
            needs = f"{scheme} needs CUDA capability {minimum}"
            return f"{needs}, but this GPU has {actual}; choose int8-weight"
    return None


def cpu_refusal(scheme: str) -> str | None:
    """The reason why this CPU cannot use a scheme; None if it can."""
    if scheme == "int8-weight":
        return None
    if scheme == "float8":
        return "float8 has no kernels on CPUs; choose int8-static on x86, int8-weight for size"
    if platform.machine().lower() not in ("x86_64", "amd64"):
        machine = f"this is {platform.machine()}"
        return f"{scheme} is compiled for x86 CPUs, but {machine}; choose int8-weight"
    if not any(shutil.which(name) for name in ("g++", "clang++", "c++", "cl")):
        return f"{scheme} is compiled on first use, but there is no C++ compiler; install g++"
    if scheme == "int8-dynamic" and not has_vnni():
        cost = "takes over 20 times as long as float32 on a CPU without VNNI"
        return f"int8-dynamic {cost}; choose int8-static"
    return None


def has_vnni() -> bool:
    """Whether this CPU accumulates 8-bit products into 32-bit sums in one instruction."""
    return not should_reduce_range(torch.device("cpu"))


class QuantisedViT(nn.Module):
    """A quantised model: images (B, 3, S, S) -> logits (B, K), compiled on the first call.

    With `compiled = False` it does the same arithmetic, slowly, in uncompiled PyTorch.
    """

    def __init__(self, model: nn.Module, config: ViTConfig, scheme: str) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.scheme = scheme
        self.compiled = scheme != "int8-weight"  # which gains nothing from compiling
        self.fast: Callable[[Tensor], Tensor] = torch.compile(model)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch, in the scheme's data type."""
        if not self.compiled:
            return self.model(images)
        with inductor.patch(freezing=True):  # lays out the constant weights for the kernels once
            return self.fast(images)

    @property
    def size_bytes(self) -> int:
        """Bytes of all stored tensors, including scales."""
        return sum(stored_bytes(tensor) for tensor in self.model.state_dict().values())


def stored_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor's data; for a quantised tensor, of all its parts."""
    if hasattr(tensor, "__tensor_flatten__"):
        return sum(stored_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return tensor.numel() * tensor.element_size()


def quantise(
    model: ViT, scheme: str, *, calibration: Iterable[Tensor] | None = None
) -> QuantisedViT:
    """A quantised copy of a model, on the model's device; ValueError if there is a `refusal`.

    int8-static requires calibration: a few batches of normalised images like those of inference.
    """
    device = next(model.parameters()).device
    if reason := refusal(scheme, device):
        raise ValueError(reason)
    copy = deepcopy(model).eval()
    if scheme == STATIC:
        batches = list(calibration or ())
        if not batches:
            raise ValueError("int8-static needs calibration: pass some batches of images")
        return QuantisedViT(quantise_static(copy, batches), model.config, scheme)
    if device.type == "cuda" and scheme in CAPABILITY:
        copy.to(torch.bfloat16)
    quantize_(copy, TORCHAO[scheme]())
    return QuantisedViT(copy, model.config, scheme)


def quantise_static(model: ViT, batches: list[Tensor]) -> fx.GraphModule:
    """Export the model as a graph with int8 weights and fixed activation ranges."""
    # without VNNI the 8-bit products are summed in 16 bits, which saturates silently unless
    # activations are limited to 7 bits
    settings = x86.get_default_x86_inductor_quantization_config(reduce_range=not has_vnni())
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_function_type_qconfig(nn.functional.linear, settings)
    size = model.config.image_size
    prepared = prepare_pt2e(graph_of(model, (3, size, size)).module(), quantizer)
    with torch.no_grad():
        for images in batches:
            prepared(images)
        converted = convert_pt2e(prepared)
    used = {node.target for node in converted.graph.nodes if node.op == "get_attr"}
    for name in {name for name, _ in converted.named_parameters()} - used:
        parent, _, leaf = name.rpartition(".")
        delattr(converted.get_submodule(parent), leaf)  # the float original of an int8 weight
    return converted


def activation_nodes(graph: fx.Graph) -> Iterator[fx.Node]:
    """The nodes that quantise or dequantise activations, in order; args[1:3] is their range."""
    per_tensor = torch.ops.quantized_decomposed
    targets = (per_tensor.quantize_per_tensor.default, per_tensor.dequantize_per_tensor.default)
    return (node for node in graph.nodes if node.target in targets)


def save_quantised(path: Path | str, quantised: QuantisedViT) -> None:
    """Write a quantised model atomically, as tensors and plain values without code."""
    stored = {
        "scheme": quantised.scheme,
        "config": json.dumps(asdict(quantised.config)),
        "state": quantised.model.state_dict(),
    }
    if quantised.scheme == STATIC:  # ranges are constants of the graph, not in its state
        ranges = [node.args[1:3] for node in activation_nodes(quantised.model.graph)]
        stored["ranges"] = torch.tensor(ranges, dtype=torch.float64)
    with written(Path(path)) as temporary:
        torch.save(stored, temporary)


def load_quantised(path: Path | str, device: torch.device | str = "cpu") -> QuantisedViT:
    """Read a quantised model; code in the file is not run, and a damaged file is a ValueError."""
    try:
        stored = torch.load(path, map_location=device, weights_only=True)
        scheme, config = stored["scheme"], ViTConfig(**json.loads(stored["config"]))
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} is not a readable quantised model ({reason})") from error
    if reason := refusal(scheme, device):
        raise ValueError(f"{path}: {reason}")
    model = ViT(config).eval()
    if scheme != STATIC:
        model.load_state_dict(stored["state"], assign=True)
        return QuantisedViT(model.to(device), config, scheme)
    graph = quantise_static(model, [torch.randn(2, 3, config.image_size, config.image_size)])
    nodes = list(activation_nodes(graph.graph))
    if len(nodes) != len(stored["ranges"]) or graph.state_dict().keys() != stored["state"].keys():
        raise ValueError(f"{path} was written by another version of torchao; quantise again")
    graph.load_state_dict(stored["state"])
    for node, (scale, zero_point) in zip(nodes, stored["ranges"].tolist(), strict=True):
        node.args = (node.args[0], scale, int(zero_point), *node.args[3:])
    graph.recompile()
    return QuantisedViT(graph, config, scheme)
