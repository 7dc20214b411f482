"""Shorter sides of a shard set: a sample of the indexes, and what `info` makes of it."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archives import WNIDS, class_images, nested
from pyarrow import fs

from shards.build.config import BuildConfig
from shards.build.pack import build
from shards.check.info import describe
from shards.dataset import format
from shards.dataset.sides import SAMPLED_SHARDS, ShorterSides


def indexed(folder, shards):
    """A shard set whose tars are empty, from the shorter sides of the images of each shard."""
    folder.mkdir()
    names = []
    for number, sides in enumerate(shards):
        names.append(format.Shard(f"train-{number:05d}.tar", len(sides), 0, ""))
        rows = [
            dict.fromkeys(("start", "stop", "offset", "size"), 0)
            | {"key": str(row), "width": side, "height": side + 9, "classes": [0], "sha256": ""}
            for row, side in enumerate(sides)
        ]
        table = pa.Table.from_pylist(rows, schema=format.INDEX)
        pq.write_table(table, folder / names[-1].index_name)
    manifest = format.Manifest(classes=("n01440764",), splits={"train": tuple(names), "val": ()})
    format.write_manifest(fs.LocalFileSystem(), str(folder), manifest)
    return format.open_set(folder)


def test_indexes_that_are_read_are_few_and_spread_over_the_split(tmp_path):
    sides = ShorterSides.sample(indexed(tmp_path / "set", [[n, n] for n in range(1, 101)]), "train")
    assert len(sides.pixels) == 2 * SAMPLED_SHARDS
    assert sides.pixels[0] == 1 and sides.pixels[-1] == 100
    assert np.diff(np.unique(sides.pixels)).max() <= 4


def test_a_small_split_is_read_whole_and_an_empty_one_has_no_sizes(tmp_path):
    shards = indexed(tmp_path / "set", [[300, 100], [], [200]])
    assert ShorterSides.sample(shards, "train").pixels.tolist() == [100, 200, 300]
    assert ShorterSides.sample(shards, "val").largest == 0


@pytest.mark.parametrize(
    ("sides", "median", "largest"),
    [
        ([256] * 90 + [100] * 10, 256, 256),  # shrunk to 256
        ([300] * 92 + [600] * 8, 300, 600),  # a twelfth is large
        ([300] * 99 + [600], 300, 300),
        ([64], 64, 64),
    ],
)
def test_largest_side_is_that_of_one_image_in_a_hundred(sides, median, largest):
    found = ShorterSides(np.sort(sides))
    assert (found.median, found.largest) == (median, largest)


def test_enlargement_is_told_by_its_share_and_its_median():
    sides = ShorterSides(np.sort([256] * 3 + [384]))
    assert sides.enlarged(384) == "75% are enlarged, 1.50 times in the median"
    assert sides.enlarged(256) == "none is enlarged"
    assert sides.suited == "training above 256 pixels enlarges most of them, above 384 nearly all"


def test_info_tells_which_sizes_a_set_suits(tmp_path):
    (tmp_path / "a.tar").write_bytes(nested({WNIDS[0]: class_images(WNIDS[0], 8)}))
    build([tmp_path / "a.tar"], tmp_path / "set", BuildConfig(resize_short=32, val_per_class=2))
    text = str(describe(str(tmp_path / "set")))
    assert (
        "train: shorter side 32 (5 %), 32 (median), 32 (99 %) pixels, of 6 images sampled; "
        "training above 32 pixels enlarges nearly all\n" in text
    )
