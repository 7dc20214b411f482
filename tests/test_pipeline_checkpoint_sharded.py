"""Shards of the training state: any number of ranks writes, any other reads the same values."""

import importlib.util
import json
import shutil
import warnings
from pathlib import Path

import pytest
import sharded_ranks
import torch
import torch.distributed.checkpoint as dcp
from processes import run_ranks
from safetensors.torch import load_file

from pipeline.checkpoint.sharded import mapped
from pipeline.checkpoint.stored import StoredTensor, read_state

needs_torchao = pytest.mark.skipif(not importlib.util.find_spec("torchao"), reason="needs torchao")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Folder of the checkpoints, and what each rank found: results(phase) is a list by rank."""
    root = tmp_path_factory.mktemp("sharded")
    (root / "results").mkdir()
    run_ranks(sharded_ranks.main, str(root), count=4)

    def results(phase: str) -> list[dict]:
        paths = sorted((root / "results").glob(f"{phase}-?.pt"))
        return [torch.load(path, weights_only=True) for path in paths]

    return root, results


def flat(tree):
    tensors = {}
    mapped(tree, lambda name, tensor: tensors.update({name: tensor}))
    return tensors


def assert_equal(found, expected):
    assert found["num_bad"] == expected["num_bad"]
    assert found["interval"] == expected["interval"]
    found, expected = flat(found), flat(expected)
    assert found.keys() == expected.keys()
    assert len(found) > 60
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize(
    ("phase", "key"),
    [
        ("fsdp_reads", "values"),
        ("ddp_reads", "values"),
        ("hsdp_reads_and_writes", "values"),
        ("hsdp_reads_and_writes", "of_ddp"),
        ("fsdp_reads_hsdp", "values"),
    ],
)
def test_any_other_number_of_ranks_reads_exactly_the_values_that_two_wrote(ranks, phase, key):
    _, results = ranks
    expected = results("fsdp_writes")[0]["values"]
    assert expected["num_bad"] == 3
    assert expected["interval"] == {"losses": [0.1], "norms": [2.5]}
    for found in results(phase):
        assert_equal(found[key], expected)


def test_the_same_number_of_ranks_goes_on_to_the_same_bits(ranks):
    _, results = ranks
    for found in results("fsdp_writes"):
        assert found["again"]["losses"] == found["losses"]
        assert_equal(found["again"]["after"], found["after"])


@pytest.mark.parametrize("phase", ["fsdp_reads", "ddp_reads", "hsdp_reads_and_writes"])
def test_any_other_number_goes_on_to_the_same_losses_and_weights(ranks, phase):
    """Up to the order of additions."""
    _, results = ranks
    (expected, *_), (found, *_) = results("fsdp_writes"), results(phase)
    assert found["losses"] == pytest.approx(expected["losses"], abs=1e-5)
    for name, tensor in expected["after"]["model"].items():
        if not name.endswith("qkv.bias"):  # the gradient of a key's bias is rounding errors
            assert torch.allclose(found["after"]["model"][name], tensor, atol=1e-4), name


def test_each_rank_writes_its_part_and_rank_0_the_model(ranks):
    root, results = ranks
    assert [found["names"] for found in results("fsdp_writes")] == [
        ["model.safetensors", "state-00000-of-00002.safetensors", "state.json"],
        ["state-00001-of-00002.safetensors"],
    ]
    assert results("ddp_reads")[0]["names"] == ["model.safetensors", "state.pt"]
    expected = results("fsdp_writes")[0]["values"]["ema"]["weights"]
    model = load_file(root / "fsdp" / "model.safetensors")
    assert expected.keys() <= model.keys()
    assert all(torch.equal(model[name], tensor) for name, tensor in expected.items())


def test_of_the_replicas_only_the_first_writes_and_gathers(ranks):
    _, results = ranks
    found = results("hsdp_reads_and_writes")
    assert [each["names"] for each in found[1:]] == [["state-00001-of-00002.safetensors"], [], []]
    assert [each["shard_bytes"] > 0 for each in found] == [True, True, False, False]
    assert [each["gathered"] > 0 for each in found] == [True, True, False, False]


def test_no_rank_but_the_first_holds_a_whole_tensor_and_no_rank_two_at_once(ranks):
    _, results = ranks
    first, second = results("fsdp_writes")
    num_weights = len(first["values"]["model"])
    assert first["weights"] == num_weights
    assert second["weights"] == 0
    assert first["gathered"] == second["gathered"] <= num_weights  # no moment, no average
    assert first["alive"] == second["alive"] == 1
    tensors = flat({key: first["values"][key] for key in ("optimizer", "ema")})
    total = sum(tensor.nbytes for tensor in tensors.values())
    assert first["shard_bytes"] + second["shard_bytes"] == total
    assert 0.4 * total < second["shard_bytes"] < 0.5 * total
    assert second["held_bytes"] == second["shard_bytes"]


def test_a_snapshot_keeps_its_values_while_training_goes_on(ranks):
    _, results = ranks
    phases = ["failure_is_shared", "ddp_reads"]
    phases += ["bytes_are_converted"] * bool(importlib.util.find_spec("torchao"))
    assert all(found["frozen"] for phase in phases for found in results(phase))


def test_the_next_snapshot_uses_the_same_memory(ranks):
    _, results = ranks
    assert all(found["reused"] for found in results("fsdp_writes"))


def test_a_failed_write_on_one_rank_is_raised_on_all_while_training_goes_on(ranks):
    _, results = ranks
    first, second = results("failure_is_shared")
    assert "OSError: rank 1: OSError: " in first["error"]
    assert "missing/state-00001-of-00002.safetensors could not be written" in first["error"]
    assert second["error"].startswith("OSError: ")
    assert "missing/state-00001-of-00002.safetensors could not be written" in second["error"]
    assert first["losses"] == second["losses"]


def test_nodes_with_unequal_numbers_of_workers_are_refused_on_every_rank(ranks):
    _, results = ranks
    errors = [found["error"] for found in results("unequal_nodes")]
    message = "parallel is hsdp, but the nodes have 1 or 2 of the 3 workers; it needs the same"
    assert [error[: len(message)] for error in errors] == [message] * 3


@needs_torchao
def test_8_bit_moments_are_read_as_the_bytes_that_were_written(ranks):
    _, results = ranks
    for found in results("bytes_are_kept"):
        assert len(found["written"]) >= 8
        assert found["read"].keys() == found["written"].keys()
        for name, tensor in found["written"].items():
            assert torch.equal(found["read"][name], tensor), name
        assert found["losses"][0] == found["losses"][1]


@needs_torchao
def test_8_bit_moments_are_quantised_anew_for_another_number_of_ranks(ranks):
    _, results = ranks
    (found,) = results("bytes_are_converted")
    assert found["moments"] >= 8
    assert found["same"]
    expected = results("bytes_are_kept")[0]["losses"][0]
    assert found["losses"] == pytest.approx(expected, abs=1e-2)


def test_the_distributed_checkpoints_of_pytorch_read_the_shards(ranks):
    root, results = ranks
    expected = results("fsdp_writes")[0]["values"]
    average = {f"ema.weights.{name}": t for name, t in expected["ema"]["weights"].items()}
    found = {name: torch.zeros_like(tensor) for name, tensor in average.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that there is one process
        dcp.load(found, storage_reader=dcp.HuggingFaceStorageReader(str(root / "fsdp")))
    model = load_file(root / "fsdp" / "model.safetensors")
    raw = expected["model"]  # within `averaged` the average holds the weights before averaging
    for name in expected["ema"]["weights"]:
        assert torch.equal(found[f"ema.weights.{name}"], raw[name]), name
        assert torch.equal(model[name], expected["ema"]["weights"][name]), name


@pytest.fixture
def copied(ranks, tmp_path):
    root, _ = ranks
    return Path(shutil.copytree(root / "fsdp", tmp_path / "copy"))


def read_all(folder):
    def read(tree):
        if isinstance(tree, StoredTensor):
            return tree.like(torch.empty(tree.shape))
        if isinstance(tree, dict):
            return {name: read(item) for name, item in tree.items()}
        return tree

    return read(read_state(folder))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip(path):
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(data)


def claim_more(path):
    index = json.loads(path.read_text())
    index["state"]["ema"]["weights"]["head.weight"]["shape"][0] += 1
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("state-00001-of-00002.safetensors", truncate, "state-00001-of-00002.safetensors is"),
        ("state-00001-of-00002.safetensors", flip, "state-00001-.*the checksum of .* differs"),
        ("state-00001-of-00002.safetensors", Path.unlink, "state-00001-.* is missing or damaged"),
        ("state.json", truncate, "state.json is missing or damaged"),
        ("state.json", lambda path: path.write_text("{}"), "state.json is missing or damaged"),
        ("state.json", claim_more, "the shards of ema.weights.head.weight .* are not complete"),
    ],
)
def test_a_damaged_or_missing_file_is_refused_by_name(copied, name, damage, message):
    assert read_all(copied)["num_bad"] == 3
    damage(copied / name)
    with pytest.raises(ValueError, match=message):
        read_all(copied)


def test_a_checkpoint_of_a_sharded_model_has_nothing_that_could_be_unpickled(ranks):
    root, _ = ranks
    assert {path.suffix for path in (root / "fsdp").iterdir()} == {".safetensors", ".json"}
    assert read_all(root / "fsdp")
