"""How many images of each class a run trains on, from the indexes of its shards.

settings + shard sets -> the column of classes of every index -> {wnid: images}
"""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.dataset import INDEX_THREADS, SampleFilter, class_numbers, split_of
from pipeline.settings.config import DataConfig
from shards.dataset.format import Shard, ShardSet, open_set


def class_images(data: DataConfig, location: str) -> dict[str, int]:
    """Training images of each wnid; an image with several classes counts for each of them.

    `location` is that of data.dir. Raises OSError or ValueError if a set cannot be read.
    """
    sets = [open_set(each) for each in (location, *data.extra)]
    classes = sets[0].manifest.classes
    numbers = class_numbers(Path(data.classes), classes) if data.classes else None
    sample_filter = SampleFilter(fraction=data.fraction, classes=numbers)
    images = dict.fromkeys(classes, 0)
    for shards in sets:
        of_shard = partial(shard_images, shards, sample_filter)
        total = np.zeros(len(shards.manifest.classes), np.int64)
        with ThreadPoolExecutor(INDEX_THREADS) as threads:
            for counts in threads.map(of_shard, split_of(shards, data.train_split)):
                total += counts
        for wnid, count in zip(shards.manifest.classes, total.tolist(), strict=True):
            images[wnid] = images.get(wnid, 0) + count
    return images


def shard_images(shards: ShardSet, sample_filter: SampleFilter, shard: Shard) -> np.ndarray:
    """Images of each class of the set in one shard: (K,)."""
    index = shards.read_index(shard, ["classes", *sample_filter.columns - {"classes"}])
    kept = index["classes"].filter(pa.array(sample_filter.of_index(index)))
    return np.bincount(pc.list_flatten(kept).to_numpy(), minlength=len(shards.manifest.classes))
