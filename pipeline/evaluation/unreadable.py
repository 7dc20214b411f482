"""Images that cannot be read: they count as wrong, are named, and end no evaluation.

    SampleReader -> fault of an image -> no answer under any protocol -> [key, reason] in the result

Shapes: B images.
"""

import logging
import math
from collections.abc import Mapping, Sequence

import numpy as np

from pipeline.data.stream import Block

log = logging.getLogger(__name__)

# column of a block: why an image could not be read, or ""
FAULT = "fault"
# what stands in its other columns: no class is -2, and none of its labels
NO_ANSWER = {"top": -2, "confidence": 0.0, "loss": math.nan}
COUNTS_AS_WRONG = "counts as wrong, and has no loss"
# how many of them the console names
NAMED = 10


def texts(faults: np.ndarray) -> list[str]:
    """The faults (B,) that are not empty."""
    return [str(fault) for fault in faults if fault]


def without_answers(block: Block, rows: np.ndarray) -> Block:
    """The block, in which the images of `rows` (B,) bool have no answer under any protocol."""
    for name, column in block.items():
        part = name.rpartition("/")[2]
        if part in NO_ANSWER:
            column[rows] = NO_ANSWER[part]
    return block


def named_faults(
    faults: Mapping[int, str], keys: Sequence[str], split: str, then: str
) -> list[list[str]]:
    """[key, reason] of each unreadable image, for result.json; warns of them.

    `faults` are by position, `keys` are those of all images of the split, and `then` says what
    becomes of such an image. ValueError if no image can be read.
    """
    found = [
        [keys[n], text.removeprefix(f"sample {keys[n]} of ")] for n, text in sorted(faults.items())
    ]
    if not found:
        return []
    first = "; ".join(f"{key} ({reason})" for key, reason in found[:NAMED])
    if len(found) == len(keys):
        raise ValueError(
            f"none of the {len(keys):,} images of {split} can be read: {first}; "
            f"python -m shards verify lists what is wrong with them"
        )
    more = f"; and {len(found) - NAMED:,} more" if len(found) > NAMED else ""
    text = "%d of %d images of %s cannot be read; each %s: %s%s"
    log.warning(text, len(found), len(keys), split, then, first, more)
    return found
