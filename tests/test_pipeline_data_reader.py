"""Byte ranges in, decoded views out; whatever is wrong with a shard is an error that names it."""

import dataclasses
import shutil

import numpy as np
import pytest
import webdataset
from pyarrow.fs import LocalFileSystem

from pipeline.data import reader
from pipeline.data.dataset import Dataset
from pipeline.data.reader import SampleReader, View, without_unreadable
from shards.dataset import store
from vit.config import ImageConfig
from vit.crops import crop_views
from vit.images import decode

VIEW = View(images=ImageConfig(), size=16, seed=3)


@pytest.fixture
def dataset(digits):
    return Dataset.open([str(digits)], "train", slice_samples=7)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Attempts follow each other at once."""
    monkeypatch.setattr(store, "PAUSES_S", (0.0, 0.0))


@pytest.fixture
def copied(digits, tmp_path):
    """A shard set that a test may damage."""
    shutil.copytree(digits, tmp_path / "shards")
    return tmp_path / "shards"


def whole(dataset: Dataset):
    """Spans of one epoch, in the order of the shards."""
    return dataset.order(None).spans(0, dataset.samples)


def read_index(dataset: Dataset):
    """Index of the first shard."""
    part, shard = dataset.shards[0]
    return part.shards.read_index(shard)


def rows(dataset: Dataset, spans, view: View = VIEW, **settings):
    return SampleReader(dataset=dataset, view=view, **settings)(spans)


def test_samples_are_those_that_webdataset_reads(digits, dataset):
    files = sorted(str(path) for path in digits.glob("train-*.tar"))
    theirs = [
        (sample["__key__"], int(sample["cls"]), sample["jpg"])
        for sample in webdataset.WebDataset(files, shardshuffle=False)
    ]
    ours = [
        (record.key, record.classes[0], bytes(record.image))
        for _, _, record in SampleReader(dataset=dataset, view=VIEW).samples(whole(dataset))
    ]
    assert len(ours) == 1437
    assert ours == theirs


def test_rows_carry_position_labels_and_views(dataset):
    spans = dataset.order(1).spans(1000, 1030)
    view = View(images=ImageConfig(), size=16, protocols=("center", "five"))
    block = rows(dataset, spans, view)
    assert block["images"].shape == (30, 6, 16, 16, 3)
    assert block["images"].dtype == np.uint8
    assert block["position"].tolist() == list(range(1000, 1030))
    records = [record for _, _, record in SampleReader(dataset=dataset, view=view).samples(spans)]
    assert block["labels"].tolist() == [list(record.classes) for record in records]
    assert block["key"].tolist() == [record.key for record in records]
    assert not block["fault"].astype(bool).any()
    five = crop_views(decode(records[4].image), ImageConfig(), 16, "five")
    assert np.array_equal(block["images"][4, 1:], five)


def test_a_view_depends_on_seed_and_position_alone(dataset):
    (_, _, record), _ = SampleReader(dataset=dataset, view=VIEW).samples(
        dataset.order(1).spans(0, 2)
    )
    pixels = decode(record.image)
    assert np.array_equal(VIEW(pixels, 5), VIEW(pixels, 5))
    assert not np.array_equal(VIEW(pixels, 5), VIEW(pixels, 6))
    other = dataclasses.replace(VIEW, seed=4)
    assert not np.array_equal(VIEW(pixels, 5), other(pixels, 5))


@pytest.mark.parametrize("protocols", [(), ("center",), ("ten", "random-3"), ("inception-144",)])
def test_the_shape_of_a_view_is_known_before_it_is_made(dataset, protocols):
    view = View(images=ImageConfig(), size=16, protocols=protocols)
    pixels = np.zeros((40, 50, 3), np.uint8)
    assert view(pixels, 0).shape == view.shape


def test_a_block_keeps_its_pixels_for_as_long_as_any_part_of_it_is_in_use(dataset):
    order = dataset.order(1)
    block = rows(dataset, order.spans(0, 30))
    part, expected = block["images"][5:7, 0], block["images"][5:7, 0].copy()
    del block
    first, second = (rows(dataset, order.spans(start, start + 30)) for start in (30, 60))
    assert np.array_equal(part, expected)
    assert not np.shares_memory(first["images"], second["images"])


def test_a_block_lies_in_the_memory_of_one_that_is_gone(dataset):
    order = dataset.order(1)
    place = rows(dataset, order.spans(0, 30))["images"].ctypes.data
    block = rows(dataset, order.spans(30, 50))
    assert block["images"].ctypes.data == place
    samples = SampleReader(dataset=dataset, view=VIEW).samples(order.spans(30, 50))
    views = [VIEW(decode(bytes(record.image)), position) for position, _, record in samples]
    assert np.array_equal(block["images"], np.stack(views))


def test_a_shard_that_is_cut_off_is_an_error(copied):
    dataset = Dataset.open([str(copied)], "train", slice_samples=7)
    shard = copied / dataset.shards[-1][1].name
    shard.write_bytes(shard.read_bytes()[:-30_000])
    with pytest.raises(OSError, match=r"train-00014\.tar, bytes .*: read \d+ bytes of \d+"):
        rows(dataset, whole(dataset))


def test_a_shard_that_vanished_is_an_error(copied):
    dataset = Dataset.open([str(copied)], "train", slice_samples=7)
    (copied / "train-00003.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"train-00003\.tar"):
        rows(dataset, whole(dataset))


def test_an_image_that_does_not_decode_is_an_error_with_its_key(copied):
    dataset = Dataset.open([str(copied)], "train", slice_samples=7)
    index = read_index(dataset)
    shard = copied / "train-00000.tar"
    data = bytearray(shard.read_bytes())
    offset, size = index["offset"][9].as_py(), index["size"][9].as_py()
    data[offset : offset + size] = bytes(size)
    shard.write_bytes(data)
    with pytest.raises(ValueError, match=f"sample {index['key'][9].as_py()} of train-00000.tar"):
        rows(dataset, whole(dataset))


def test_an_index_of_another_shard_is_refused(copied):
    shutil.copy(copied / "val-00000.parquet", copied / "train-00000.parquet")
    with pytest.raises(ValueError, match=r"train-00000\.tar: its index has 90 samples"):
        Dataset.open([str(copied)], "train", slice_samples=7)


def test_a_split_that_is_not_there_is_refused(digits):
    with pytest.raises(ValueError, match="no split 'test'; it has: train, val"):
        Dataset.open([str(digits)], "test", slice_samples=7)


class Storage:
    """A store whose reads fail as they are told to: OSError, a number of bytes less, or a flip."""

    def __init__(self, faults):
        self.faults, self.inner, self.reads = list(faults), LocalFileSystem(), 0

    def open_input_file(self, path):
        return self.File(self, self.inner.open_input_file(path))

    class File:
        def __init__(self, storage, file):
            self.storage, self.file = storage, file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def seek(self, offset):
            self.file.seek(offset)

        def read_buffer(self, size):
            self.storage.reads += 1
            fault = self.storage.faults.pop(0) if self.storage.faults else None
            if isinstance(fault, OSError):
                raise fault
            data = bytearray(self.file.read(size))
            if isinstance(fault, int):
                return bytes(data[:-fault])
            if fault == "flip":
                data[1600] ^= 1  # in the first image: header, .cls, header, image from byte 1536
            return bytes(data)


def on_storage(dataset: Dataset, *faults) -> tuple[Dataset, Storage]:
    """The same dataset on a store with faults."""
    storage = Storage(faults)
    (subset,) = dataset.subsets
    shards = dataclasses.replace(subset.shards, fs=storage)
    subset = dataclasses.replace(subset, shards=shards)
    return dataclasses.replace(dataset, subsets=(subset,)), storage


SLOW_DOWN = OSError("AWS Error SLOW_DOWN during GetObject: HTTP 503, please reduce your rate")
TIMEOUT = OSError("AWS Error NETWORK_CONNECTION: curlCode 28, Timeout was reached")


@pytest.mark.parametrize("faults", [[SLOW_DOWN], [TIMEOUT, 100], [1, SLOW_DOWN]])
def test_a_read_that_fails_or_comes_short_is_tried_again(dataset, faults):
    spans = dataset.order(5).spans(0, 7)
    flaky, storage = on_storage(dataset, *faults)
    assert np.array_equal(rows(flaky, spans)["images"], rows(dataset, spans)["images"])
    assert storage.reads > len(faults)


def test_a_range_is_the_bytes_of_the_file(digits, dataset):
    subset, shard = dataset.shards[2]
    data = reader.read_range(subset.shards, shard, 1000, 9000)
    assert data == (digits / shard.name).read_bytes()[1000:9000]  # signed bytes would differ


def test_a_task_reads_a_few_slices_ahead_of_the_one_it_decodes(dataset):
    counted, storage = on_storage(dataset)
    samples = SampleReader(dataset=counted, view=VIEW).samples(whole(dataset))
    next(samples)
    samples.close()  # waits for the reads that have begun
    assert storage.reads == 1 + reader.READ_THREADS


@pytest.mark.parametrize("fault", [SLOW_DOWN, TIMEOUT, 100])
def test_a_read_that_keeps_failing_stops_with_the_name(dataset, fault):
    flaky, storage = on_storage(dataset, *[fault] * 9)
    with pytest.raises(OSError, match=r"train-00000\.tar, bytes 0 to \d+: (AWS|read \d+ bytes)"):
        SampleReader(dataset=flaky, view=VIEW).slice(0)
    assert storage.reads == 3


def test_a_flipped_bit_is_found_by_the_hash_on_request(dataset):
    flaky, _ = on_storage(dataset, "flip")
    with pytest.raises(OSError, match=r"train-00000.*sample \S+ is not what the index says"):
        SampleReader(dataset=flaky, view=VIEW, verify=True).slice(0)
    SampleReader(dataset=dataset, view=VIEW, verify=True).slice(0)


def test_an_unreadable_image_is_left_blank_and_named_where_that_is_allowed(copied):
    dataset = Dataset.open([str(copied)], "train", slice_samples=7)
    index = read_index(dataset)
    shard = copied / "train-00000.tar"
    data = bytearray(shard.read_bytes())
    offset = index["offset"][9].as_py()
    data[offset : offset + 100] = bytes(100)
    shard.write_bytes(data)
    block = rows(dataset, dataset.order(None).spans(0, 14), skip=True)
    assert [place for place, fault in enumerate(block["fault"]) if fault] == [9]
    assert f"sample {index['key'][9].as_py()} of train-00000.tar" in block["fault"][9]
    assert block["labels"][9].tolist() == [index["classes"][9].as_py()[0]]
    seen = without_unreadable(block["labels"], block["fault"])
    assert seen[9].tolist() == [-1] and (np.delete(seen, 9) >= 0).all()
    assert not block["images"][9].any() and block["images"][8].any()


def test_a_fraction_and_a_subset_of_classes_are_kept_alike_by_index_and_by_task(digits, tmp_path):
    whole_set = Dataset.open([str(digits)], "train", slice_samples=7)
    (tmp_path / "classes.txt").write_text("n00000002\nn00000005\n")
    dataset = Dataset.open(
        [str(digits)], "train", 7, classes=tmp_path / "classes.txt", fraction=0.5
    )
    kept = rows(dataset, dataset.order(None).spans(0, dataset.samples))
    assert set(kept["labels"].ravel()) == {2, 5}
    assert len(set(kept["key"])) == dataset.samples
    of_classes = np.isin(rows(whole_set, whole(whole_set))["labels"], (2, 5)).sum()
    # a binomial draw: within four standard deviations of a half
    assert abs(dataset.samples - of_classes / 2) < 4 * np.sqrt(of_classes) / 2


def test_a_class_list_with_unknown_wnids_is_refused(digits, tmp_path):
    (tmp_path / "classes.txt").write_text("n00000002 n99999999")
    with pytest.raises(ValueError, match="unknown: n99999999"):
        Dataset.open([str(digits)], "train", 7, classes=tmp_path / "classes.txt")


def test_sets_are_mixed_by_weight_each_in_its_own_order(digits):
    dataset = Dataset.open([str(digits), str(digits)], "train", slice_samples=7)
    assert dataset.samples == 2 * 1437
    mixture = dataset.order(3, weights=(3, 1), run=7)
    spans = mixture.spans(0, 1024 * 7)
    first = spans.slice < dataset.rows[1]
    shares = [spans.count[first].sum(), spans.count[~first].sum()]
    assert shares == [768 * 7, 256 * 7]
    alone = dataset.order(3, weights=(3, 1), run=7).orders[1].spans(0, 256 * 7)
    keys = rows(
        dataset,
        dataclasses.replace(
            spans,
            **{
                name: getattr(spans, name)[~first]
                for name in ("slice", "first", "count", "position")
            },
        ),
    )["key"]
    alone = dataclasses.replace(alone, slice=alone.slice + dataset.rows[1])
    assert keys.tolist() == rows(dataset, alone)["key"].tolist()
