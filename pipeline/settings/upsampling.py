"""Whether the images in the shards are as large as a run needs them.

A run needs a shorter side of `model.image_size` pixels. In every collection some images are smaller
by nature; if almost none is large enough, the shards were made for a smaller size.
"""

import logging

from pipeline.settings.config import TrainConfig
from shards.dataset.format import ShardSet, open_set
from shards.dataset.sides import ShorterSides
from support.redact import redact

log = logging.getLogger(__name__)


def needs(config: TrainConfig) -> str:
    """The shorter side that a run needs, in words."""
    size = config.model.image_size
    evaluated = config.images.eval_side(size)
    larger = f"; evaluation resizes it to {evaluated}" if evaluated > size else ""
    return f"shorter side of at least {size} pixels in the shards{larger}"


def compared(config: TrainConfig) -> str:
    """What a run needs, and what its training sets have, as far as they can be read from here."""
    size, texts = config.model.image_size, [needs(config)]
    for location in (config.data.dir, *config.data.extra):
        try:
            shards = open_set(location)
        except OSError:  # it does not exist, or this machine may not read it
            texts.append(f"not compared with {redact(location)}, which cannot be read from here")
            continue
        sides = ShorterSides.sample(shards, config.data.train_split)
        verdict = "; TOO SMALL, training refuses it" if sides.largest < size else ""
        texts.append(f"{redact(location)}: {sides}: {sides.enlarged(size)}{verdict}")
    return "; ".join(texts)


def check_sides(config: TrainConfig, shards: ShardSet, split: str) -> None:
    """Raise ValueError if nearly all images of a split are too small for a run, or warn if allowed.

    The sizes are those of a sample of the split.
    """
    size, sides = config.model.image_size, ShorterSides.sample(shards, split)
    if sides.largest >= size:
        return
    found = (
        f"the images in {split} of {redact(shards.location)} are too small for model.image_size "
        f"({size}): {sides}: {sides.enlarged(size)}"
    )
    if not config.data.allow_upsampling:
        raise ValueError(
            f"{found}; build the shards again with --resize-short "
            f"{config.images.eval_side(size)} or more, or with --keep-bytes, or set "
            f"--data.allow-upsampling to train on enlarged images"
        )
    log.warning("%s", found)
