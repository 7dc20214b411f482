"""How many images of each class a run trains on, from the indexes of its shards.

settings + shard sets -> the column of classes of every index -> {wnid: images}
"""

import contextlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.dataset import INDEX_THREADS, SampleFilter, class_numbers, split_of
from pipeline.settings.config import DataConfig
from shards.dataset.format import Shard, ShardSet, open_set
from support.files import write_json

# in the folder of a run: what was counted, and of which images
COUNTS = "class_images.json"


def class_images(data: DataConfig, location: str, folder: Path | None = None) -> dict[str, int]:
    """Training images of each wnid; an image with several classes counts for each of them.

    `location` is that of data.dir. A `folder` keeps the counts, so that the indexes, which are
    thousands of files, are read once as long as the images are the same. Raises OSError or
    ValueError if a set cannot be read.
    """
    sets = [open_set(each) for each in (location, *data.extra)]
    classes = sets[0].manifest.classes
    numbers = class_numbers(Path(data.classes), classes) if data.classes else None
    sample_filter = SampleFilter(fraction=data.fraction, classes=numbers)
    of = {
        "sets": [each.fingerprint for each in sets],
        "split": data.train_split,
        "fraction": data.fraction,
        "classes": None if numbers is None else sorted(map(int, numbers)),
    }
    if folder and (kept := read_counts(folder / COUNTS, of)) is not None:
        return kept
    images = dict.fromkeys(classes, 0)
    for shards in sets:
        of_shard = partial(shard_images, shards, sample_filter)
        total = np.zeros(len(shards.manifest.classes), np.int64)
        with ThreadPoolExecutor(INDEX_THREADS) as threads:
            for counts in threads.map(of_shard, split_of(shards, data.train_split)):
                total += counts
        for wnid, count in zip(shards.manifest.classes, total.tolist(), strict=True):
            images[wnid] = images.get(wnid, 0) + count
    if folder:
        with contextlib.suppress(OSError):  # a run of someone else, a full or read-only disk
            write_json(folder / COUNTS, {"of": of, "images": images})
    return images


def read_counts(path: Path, of: Mapping[str, object]) -> dict[str, int] | None:
    """The counts in a file; None if there are none, or they are of other images."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    return found["images"] if found["of"] == of else None


def shard_images(shards: ShardSet, sample_filter: SampleFilter, shard: Shard) -> np.ndarray:
    """Images of each class of the set in one shard: (K,)."""
    index = shards.read_index(shard, ["classes", *sample_filter.columns - {"classes"}])
    kept = index["classes"].filter(pa.array(sample_filter.of_index(index)))
    return np.bincount(pc.list_flatten(kept).to_numpy(), minlength=len(shards.manifest.classes))
