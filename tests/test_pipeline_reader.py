"""Byte ranges in, decoded views out; whatever is wrong with a shard is an error that names it."""

import dataclasses
import shutil

import numpy as np
import pytest
import webdataset

from pipeline.reader import Source, View, load
from shards.plan import Order
from vit.config import ImageConfig
from vit.images import crop_views, decode

VIEW = View(images=ImageConfig(), size=16, seed=3)


@pytest.fixture
def source(digits):
    return Source.open(str(digits), "train", slice_samples=7)


@pytest.fixture
def copied(digits, tmp_path):
    """A shard set that a test may damage."""
    shutil.copytree(digits, tmp_path / "shards")
    return tmp_path / "shards"


def whole(source: Source):
    """Pieces of one epoch, in the order of the shards."""
    return Order(counts=source.slices.count, seed=None).pieces(0, source.slices.samples)


def test_samples_are_those_that_webdataset_reads(digits, source):
    files = sorted(str(path) for path in digits.glob("train-*.tar"))
    theirs = [
        (sample["__key__"], int(sample["cls"]), sample["jpg"])
        for sample in webdataset.WebDataset(files, shardshuffle=False)
    ]
    ours = [
        (record.key, record.classes[0], bytes(record.image))
        for _, record in source.read(whole(source))
    ]
    assert len(ours) == 1437
    assert ours == theirs


def test_rows_carry_position_labels_and_views(source):
    pieces = Order(counts=source.slices.count, seed=1).pieces(1000, 1030)
    rows = load(source, pieces, View(images=ImageConfig(), size=16, protocols=("center", "five")))
    assert rows["images"].shape == (30, 6, 16, 16, 3)
    assert rows["images"].dtype == np.uint8
    assert rows["position"].tolist() == list(range(1000, 1030))
    records = [record for _, record in source.read(pieces)]
    assert rows["labels"].tolist() == [list(record.classes) for record in records]
    five = crop_views(decode(records[4].image), ImageConfig(), 16, "five")
    assert np.array_equal(rows["images"][4, 1:], five)


def test_a_view_depends_on_seed_and_position_alone(source):
    pieces = Order(counts=source.slices.count, seed=1).pieces(0, 2)
    (_, record), _ = source.read(pieces)
    pixels = decode(record.image)
    assert np.array_equal(VIEW(pixels, 5), VIEW(pixels, 5))
    assert not np.array_equal(VIEW(pixels, 5), VIEW(pixels, 6))
    other = dataclasses.replace(VIEW, seed=4)
    assert not np.array_equal(VIEW(pixels, 5), other(pixels, 5))


def test_a_shard_that_is_cut_off_is_an_error(copied):
    source = Source.open(str(copied), "train", slice_samples=7)
    shard = copied / source.names[-1].name
    shard.write_bytes(shard.read_bytes()[:-30_000])
    with pytest.raises(OSError, match=r"train-00014\.tar, bytes .*: read \d+ bytes of \d+"):
        load(source, whole(source), VIEW)


def test_a_shard_that_vanished_is_an_error(copied):
    source = Source.open(str(copied), "train", slice_samples=7)
    (copied / "train-00003.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"train-00003\.tar"):
        load(source, whole(source), VIEW)


def test_an_image_that_does_not_decode_is_an_error_with_its_key(copied):
    source = Source.open(str(copied), "train", slice_samples=7)
    index = source.shards.read_index(source.names[0])
    shard = copied / "train-00000.tar"
    data = bytearray(shard.read_bytes())
    offset, size = index["offset"][9].as_py(), index["size"][9].as_py()
    data[offset : offset + size] = bytes(size)
    shard.write_bytes(data)
    with pytest.raises(ValueError, match=f"sample {index['key'][9].as_py()} at position 9"):
        load(source, whole(source), VIEW)


def test_an_index_of_another_shard_is_refused(copied):
    shutil.copy(copied / "val-00000.parquet", copied / "train-00000.parquet")
    with pytest.raises(ValueError, match=r"train-00000\.tar: its index has 90 samples"):
        Source.open(str(copied), "train", slice_samples=7)


def test_a_split_that_is_not_there_is_refused(digits):
    with pytest.raises(ValueError, match="no split 'test'; it has: train, val"):
        Source.open(str(digits), "test", slice_samples=7)
