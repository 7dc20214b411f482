"""A file that is damaged, or lies, is an error in words: nothing crashes, hangs or fills memory."""

import json
import os
import re
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from native_backends import saved

from vit.native.model import NativeViT, floats

# the other back ends read files with the same code
pytestmark = pytest.mark.parametrize("backend", ["cpu"], indirect=True)
TINY = {"image_size": 4, "patch_size": 2, "width": 8, "heads": 2, "mlp_width": 6, "depth": 2}
HUGE = 1 << 40


@pytest.fixture
def tiny(tmp_path):
    """Folder of the checkpoint of a tiny model."""
    return saved(tmp_path / "tiny", **TINY, num_classes=3)[1]


def read(folder):
    """Header and bytes of the tensors of a checkpoint."""
    content = (folder / "model.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def write(folder, header, data):
    """Write a file of a header: a table, or bytes as they are."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)


def rewrite(folder, tensors):
    """Write tensors as float32 with a correct header."""
    header, data = {}, b""
    for name, values in tensors.items():
        content = np.ascontiguousarray(values, np.float32).tobytes()
        offsets = [len(data), len(data) + len(content)]
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": offsets}
        data += content
    write(folder, header, data)


def tensors_of(folder):
    """The tensors of a checkpoint, by their names."""
    header, data = read(folder)
    header.pop("__metadata__")
    return {
        name: np.frombuffer(data[slice(*entry["data_offsets"])], np.float32).reshape(entry["shape"])
        for name, entry in header.items()
    }


def opens(backend, path):
    """Open a model and compute with it."""
    with NativeViT.open(path, backend=backend, threads=1) as model:
        size = model.description.image_size
        model(np.zeros((1, 3, size, size), np.float32))


def refused(backend, path, words):
    """Check that opening is an error with these words, which is short and names the path."""
    with pytest.raises(ValueError, match=words) as caught:
        opens(backend, path)
    assert len(str(caught.value)) < 1000 and str(path) in str(caught.value)


def test_a_file_cut_off_anywhere_is_refused(backend, tiny):
    path = tiny / "model.safetensors"
    content = path.read_bytes()
    header = 8 + struct.unpack("<Q", content[:8])[0]
    places = {0, 1, 7, 8, 9, header // 2, header - 1, header, header + 1, len(content) - 1}
    for end in sorted(places, reverse=True):
        path.write_bytes(content[:end])
        refused(backend, tiny, "truncated|no safetensors file|bytes of tensors")
    path.write_bytes(content + b"\0")
    refused(backend, tiny, "bytes after its last tensor")


@pytest.mark.parametrize("size", [11, 10**6, 10**9, 2**31, 2**63 - 1, 2**63, 2**64 - 1])
def test_a_header_longer_than_the_file_is_refused(backend, tiny, size):
    (tiny / "model.safetensors").write_bytes(struct.pack("<Q", size) + b"{" + b" " * 9)
    refused(backend, tiny, f"states a header of {size} bytes")


@pytest.mark.parametrize(
    "header",
    [
        *(b"", b"{", b"nothing", b"[]", b"{}", b"7", b'"text"', b"null", b"\xff\xfe\0", b"\0" * 50),
        *(b"[" * 10**6, b'{"a":' * 10**6, b'{"a":1,"a":1}', b"{" + b" " * 10**6),
        *(b'{"__metadata__": 1}', b'{"__metadata__": {"a": 1}}', b'{"__metadata__": ["a"]}'),
        *(b'{"a": []}', b'{"a": {"dtype": "F32"}}', b'{"a": "\\ud800"}'),
        b'{"a": {"dtype": "F32", "shape": 3, "data_offsets": [0, 0]}}',
        b'{"a": {"dtype": "F32", "shape": [1e3], "data_offsets": [0, 0]}}',
        b'{"a": {"dtype": "F32", "shape": ["1"], "data_offsets": [0, 0]}}',
        b'{"a": {"dtype": 32, "shape": [0], "data_offsets": [0, 0]}}',
        b'{"a": {"dtype": "F31", "shape": [0], "data_offsets": [0, 0]}}',
        b'{"a": {"dtype": "F32", "shape": [0], "data_offsets": [0]}}',
        b'{"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0, 0]}}',
        b'{"a": {"dtype": "F32", "shape": [' + b"1," * 10**6 + b'1], "data_offsets": [0, 4]}}',
        b'{"' + b"a" * 10**6 + b'": {}}',
    ],
    ids=lambda header: header[:40].decode(errors="replace"),
)
def test_a_header_that_is_no_table_of_tensors_is_refused(backend, tiny, header):
    write(tiny, header, b"")
    refused(backend, tiny, "header|no ViT|unknown type|offsets|shape|bytes")


@pytest.mark.parametrize("name", ["head.weight", "blocks.1.attn.qkv.bias", "pos_embed"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("data_offsets", offsets) for offsets in ([0, 4], [-4, 0], [8, 4], [0, 2**62])),
        *(("data_offsets", offsets) for offsets in ([2**63 - 4, 2**63 - 1], [0, 2**63])),
        *(("data_offsets", offsets) for offsets in ([-(2**63), 0], [0, 2**64], [0.5, 4])),
        *(("shape", shape) for shape in ([], [0], [-1], [HUGE], [2**32, 2**32], [2**31] * 3)),
        *(("shape", shape) for shape in ([2**63 - 1, 2], [-(2**63), -1], [2**62, 4, 0], [1] * 99)),
        *(("dtype", dtype) for dtype in ("F64", "I8", "F16", "", "F4", "f32", None)),
    ],
)
def test_a_tensor_that_lies_is_refused(backend, tiny, name, key, value):
    header, data = read(tiny)
    header[name][key] = value
    write(tiny, header, data)
    refused(backend, tiny, "damaged|states|overlap|shape|unknown type|needs|integer")


def test_tensors_that_share_bytes_are_refused(backend, tiny):
    header, data = read(tiny)
    header["norm.bias"]["data_offsets"] = header["norm.weight"]["data_offsets"]
    write(tiny, header, data)
    refused(backend, tiny, "overlap, or bytes that belong to none")


def test_each_tensor_is_needed_and_in_its_shape(backend, tiny):
    """Without the tensors that are options the file is another model, which it may be."""
    tensors = tensors_of(tiny)
    options = re.compile(r"cls_token|.*qkv.bias")
    for name, values in tensors.items():
        less = {other: each for other, each in tensors.items() if other != name}
        if not options.fullmatch(name):
            rewrite(tiny, less)
            layer = re.escape(name.rpartition(".")[0] or name)
            refused(backend, tiny, f"has no.* {layer}|no square|blocks are missing")
        for other in (values[None], values.ravel()[:-1], np.concatenate([values, values])):
            rewrite(tiny, less | {name: other})
            refused(backend, tiny, "of shape|no square|other axes|do not divide")
        if values.ndim == 2 and values.shape[0] != values.shape[1]:
            rewrite(tiny, less | {name: values.T})
            refused(backend, tiny, "of shape")


@pytest.mark.parametrize(
    "name",
    [
        *("blocks.3.norm1.weight", "blocks.2.mlp.fc1.weight", "fc_norm.weight", "norm_pre.weight"),
        *("dist_token", "head_dist.weight", "blocks.0.ls1.gamma", "optimizer.state"),
    ],
)
def test_a_tensor_that_the_model_would_not_use_is_refused(backend, tiny, name):
    """A block after a gap, or a part of another kind of model: the outputs would be wrong."""
    rewrite(tiny, tensors_of(tiny) | {name: np.ones(8, np.float32)})
    refused(backend, tiny, re.escape(name) + r"|has no tensor (fc_norm.bias|blocks.0.ls2.gamma)")


@pytest.mark.parametrize(
    "tensors",
    [
        {"head.weight": (HUGE // 8, 8), "head.bias": (HUGE // 8,)},
        {"blocks.0.mlp.fc2.weight": (2**19, 2**20)},
        {"pos_embed": (1, HUGE // 8, 8)},
    ],
    ids=["head", "mlp", "positions"],
)
def test_a_model_of_terabytes_is_refused_before_memory_is_taken(backend, tiny, tensors):
    """The file has the size that its header states: holes, which take no room on a disk."""
    header, end = {}, 0
    for name, entry in read(tiny)[0].items():
        if name != "__metadata__":
            shape = tensors.get(name, entry["shape"])
            first, end = end, end + 4 * int(np.prod(shape, dtype=object))
            header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [first, end]}
    write(tiny, header, b"")
    path = tiny / "model.safetensors"
    try:
        os.truncate(path, path.stat().st_size + end)
    except OSError as error:
        pytest.skip(f"no file of {end:,} bytes can be made here: {error}")
    refused(backend, tiny, "memory|size")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        *(("heads", heads, "size of") for heads in (0, -1, -(2**63), 2**40)),
        *(("heads", heads, "do not divide") for heads in (3, 16)),
        *(("heads", heads, "heads is") for heads in (2.5, 2**63, "2", True, None, [2])),
        *(("norm_eps", eps, "norm_eps") for eps in (0, -1e-6, 1, 1e300, 1e-300, "1", None)),
        *(("norm_eps", eps, "byte") for eps in (float("nan"), float("inf"))),
        *(("gelu", gelu, "gelu is") for gelu in ("swish", "", 1, None)),
    ],
)
@pytest.mark.parametrize("place", ["config.json", "metadata"])
def test_an_impossible_fact_is_refused(backend, tiny, place, name, value, words):
    facts = {"heads": 2, "norm_eps": 1e-6, "gelu": "exact"} | {name: value}
    config = tiny / "config.json"
    if place == "metadata":
        header, data = read(tiny)
        write(tiny, header | {"__metadata__": {"vit": json.dumps(facts)}}, data)
        config.unlink()
    else:
        config.write_text(json.dumps({f"model.{key}": fact for key, fact in facts.items()}))
    refused(backend, tiny, words)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"null", b"\xff", b"[" * 10**6, b"{}x"],
    ids=lambda text: text[:9].decode(errors="replace"),
)
def test_a_damaged_config_is_refused(backend, tiny, text):
    (tiny / "config.json").write_bytes(text)
    refused(backend, tiny, "config.json")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_what_is_no_file_is_refused(backend, tiny, name):
    path = tiny / name
    path.unlink()
    path.mkdir()
    refused(backend, tiny, name)
    path.rmdir()
    os.mkfifo(path)  # to open it would wait for a writer
    refused(backend, tiny, name)
    path.unlink()
    path.symlink_to("nowhere")
    if name == "model.safetensors":
        refused(backend, tiny, name)
    path.unlink()
    path.symlink_to("/dev/zero")  # without an end
    refused(backend, tiny, name)
    path.unlink()
    path.write_bytes(b"")
    os.truncate(path, HUGE)
    refused(backend, tiny, name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_without_permission_is_refused(backend, tiny, name):
    (tiny / name).chmod(0)
    refused(backend, tiny, name)


def test_a_path_that_leads_nowhere_is_refused(backend, tmp_path):
    refused(backend, tmp_path / "nowhere", "is not there")
    refused(backend, tmp_path / ("long" * 100), "too long")
    refused(backend, tmp_path, "model.safetensors is not there")


def test_a_path_may_have_any_bytes(backend, tiny):
    name = os.fsdecode(os.fsencode(tiny.parent) + b"/\xff, \xc3\xa9")
    tiny.rename(name)
    opens(backend, name)


def test_an_image_that_is_no_number_spoils_no_other(backend, tiny):
    images = np.random.default_rng(0).standard_normal((3, 3, 4, 4), np.float32)
    with NativeViT.open(tiny, backend=backend, threads=1) as model:
        expected = model(images)
        images[1] = np.nan
        outputs = model(images)
    assert np.isnan(outputs[1]).all()
    np.testing.assert_array_equal(outputs[[0, 2]], expected[[0, 2]])


def test_a_batch_that_no_memory_holds_is_refused(backend, tiny):
    with NativeViT.open(tiny, backend=backend, threads=1) as model:
        pixel = floats(np.zeros(1, np.float32))  # is not read before all else is checked
        for batch in (-1, 0, 2**21, 2**40, 2**62, 2**63 - 1):
            with pytest.raises(ValueError, match=f"batch is {batch}"):
                model._call("vit_forward", model._model, pixel, batch, pixel)


@settings(deadline=None, max_examples=300, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_damaged_header_is_refused_or_harmless(backend, tiny_content, data):
    folder, content, end = tiny_content
    damaged = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, end - 1))
        damaged[place] = data.draw(st.integers(0, 255) | st.sampled_from(b'0123456789-[]{},:"eE'))
    (folder / "model.safetensors").write_bytes(damaged)
    try:
        opens(backend, folder)
    except ValueError as error:
        assert len(str(error)) < 1000


@pytest.fixture(scope="module")
def tiny_content(tmp_path_factory):
    """Folder, content and length of the header of a tiny model."""
    folder = saved(tmp_path_factory.mktemp("tiny"), **TINY | {"depth": 1}, num_classes=3)[1]
    content = (folder / "model.safetensors").read_bytes()
    return folder, content, 8 + struct.unpack("<Q", content[:8])[0]
