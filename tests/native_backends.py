"""The native back ends that this machine can build, and checkpoints for them.

    def test_...(backend, tmp_path):
        model, path = saved(tmp_path, width=96, heads=3)
        NativeViT.open(path, backend=backend, threads=2)(images)

`backend` is each row of `vit.native.plan.BACKENDS` in turn. conftest.py imports this file, so
PyTorch is imported only where a checkpoint is made.
"""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from vit.config import ImageConfig, ViTConfig
from vit.native import build, plan, toolchain

# a model that takes milliseconds: 26 tokens, three heads
SMALL = {"image_size": 40, "patch_size": 8, "width": 96, "depth": 2, "mlp_width": 160, "heads": 3}
# back ends whose oneDNN has the name of another one's: a process can load one of the two
ALONE = ("sycl",)
# back ends whose inputs of int8 have 8 bits everywhere; the others need a CPU with VNNI for them
EIGHT_BITS = ("cuda", "cuda-host")
# tests/test_vit_native_sanitized.py sets it for a process that runs the other tests
SANITIZE = "VIT_NATIVE_SANITIZE"


@pytest.fixture(scope="session", params=plan.BACKENDS)
def backend(request):
    """Name of a back end that is built; its tests are skipped where it cannot be."""
    if request.param in ALONE and request.param not in request.config.option.keyword:
        pytest.skip(f"in a process of its own: pytest -k {request.param} tests/test_vit_native*.py")
    with pytest.MonkeyPatch.context() as patch:
        if os.environ.get(SANITIZE):
            patch.setattr(build, "plan_of", lambda backend, sanitize: plan.plan_of(backend, True))
        try:
            build.build(request.param)
        except toolchain.Missing as missing:
            pytest.skip(str(missing))
        if absent := no_gpu(request.param):
            pytest.skip(absent)
        yield request.param


def no_gpu(backend):
    """What a back end that is built says of a machine without the device that it needs; or ""."""
    from vit.native.model import NativeViT

    with pytest.raises(ValueError) as raised:
        NativeViT.open("/nonexistent", backend=backend)  # the device comes first
    return str(raised.value) if "no NVIDIA GPU" in str(raised.value) else ""


def largest_code(backend):
    """Of an input in int8."""
    from vit.quant import has_vnni

    return 255 if backend in EIGHT_BITS or has_vnni() else 127


def saved(path, *, head=True, dtype=None, images=None, seed=0, **settings):
    """A model of random weights, and the checkpoint of it: a folder, which is made at `path`.

    Settings are ViTConfig's; without others the model is `SMALL`, of 10 classes. Without `head`
    model and file end before it. The weights are those of a type that can be rounded to it, which
    the file has. `images` is an ImageConfig.
    """
    from torch import nn

    from vit.weights import save_safetensors

    config = ViTConfig(**{**SMALL, "num_classes": 10, **settings})
    model = random_weights(config, seed)
    if not head:
        model.head = nn.Identity()
    if dtype is not None:
        model.to(dtype)
    state = model.state_dict()
    Path(path).mkdir(parents=True, exist_ok=True)
    save_safetensors(Path(path) / "model.safetensors", state)
    write_facts(Path(path), config, images or ImageConfig())
    return model.float(), Path(path)


def random_weights(config, seed):
    """A model all of whose parts matter, with outputs of about 1 at every depth and width."""
    import torch

    from vit.model import ViT

    model = ViT(replace(config, dropout=0.0, drop_path=0.0)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(generator=generator)
            if name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "gamma")):
                parameter.mul_(0.2).add_(1.0)
            elif name.endswith("bias") or name in ("cls_token", "reg_token", "pos_embed"):
                parameter.mul_(0.3)
            else:  # queries and keys of 1.5, so that attention is neither even nor of one token
                gain = 1.5 if "qkv" in name else 1.0
                parameter.mul_(gain * parameter[0].numel() ** -0.5)
    return model


def images_for(model, batch, seed=0):
    """Images as after normalisation: (B, 3, S, S)."""
    import numpy as np

    size = model.config.image_size
    return np.random.default_rng(seed).standard_normal((batch, 3, size, size), np.float32)


def computed(model, images):
    """Outputs of the PyTorch model, in the type of its weights."""
    import torch

    with torch.inference_mode():
        return model(torch.from_numpy(images).to(model.patch_embed.proj.weight.dtype)).numpy()


def distance(outputs, expected):
    """The largest difference as a share of the largest output."""
    assert outputs.shape == expected.shape
    return abs(outputs - expected).max() / abs(expected).max()


def write_facts(folder, config, images):
    """Write config.json and meta.json as training does."""
    tables = {"model.": config.flat(), "images.": images.flat()}
    flat = {
        prefix + name: value for prefix, table in tables.items() for name, value in table.items()
    }
    (folder / "config.json").write_text(json.dumps(flat))
    meta = {
        **{"format": 2, "step": 1, "samples": 1, "metrics": {}, "fingerprint": "f" * 64},
        **{"commit": None, "versions": {}, "files": {}},
        "classes": [f"n{number:08}" for number in range(config.num_classes)],
    }
    (folder / "meta.json").write_text(json.dumps(meta))
