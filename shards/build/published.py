"""Archives as they were published: their classes and how many images they hold.

    differences("winter21_whole.tar.gz", "class-tars", {"": 13_153_499}, wnids) -> sentences

A cut or damaged download can look like a smaller data set; only these numbers tell the two apart.
To add an archive, append it to ARCHIVES.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from shards.build.config import Kind
from shards.dataset.classes import class_list

NAMED = 5
"""Classes that a sentence names."""


@dataclass(frozen=True)
class Archive:
    """An archive, or a folder of its unpacked content, as published."""

    name: str
    """Its file name without extension; several archives may have the same."""
    classes: str
    """Name of the built-in list of its classes."""
    images: Mapping[str, int]
    """Files by split, "" where the archive has no splits."""
    margin: int = 0
    """By how much the published numbers differ between copies."""


ARCHIVES = (
    # Classes: timm's card of imagenet-w21-wds. Images: fastdup's report on ImageNet-21K.
    Archive("winter21_whole", "winter21", {"": 13_153_500}),
    # Classes and images: "ImageNet" in Wikipedia, after image-net.org.
    Archive("fall11_whole", "fall11", {"": 14_197_122}),
    # ILSVRC2012 of image-net.org; CLS-LOC is the same in one folder, as Kaggle distributes it.
    Archive("ILSVRC2012_img_train", "1k", {"train": 1_281_167}),
    Archive("ILSVRC2012_img_val", "1k", {"val": 50_000}),
    Archive("CLS-LOC", "1k", {"train": 1_281_167, "val": 50_000}),
    # The processed sets, dataset_preprocessing/processing_instructions.md of
    # Alibaba-MIIL/ImageNet21K. Their small classes were not counted. That of fall11 is made by each
    # user: DINOv2 has 15 train images more and 2 val images fewer.
    Archive("imagenet21k_resized", "miil-winter21", {"train": 11_060_223, "val": 522_500}),
    Archive("imagenet21k_resized", "miil-fall11", {"train": 11_797_632, "val": 561_052}, 15),
)


def differences(
    name: str, kind: Kind, counts: Mapping[str, int], wnids: Collection[str]
) -> list[str]:
    """How a source differs from the published archive that it is, one sentence each.

    `counts` are all its image files by split ("" if it has none), before any is left out or merged,
    and `wnids` their classes. The archive is recognised by its name or by having exactly the
    classes of a published one. The list is empty for other archives and for shards.
    """
    wnids, has_small = set(wnids), "small" in counts
    counts = {split: count for split, count in counts.items() if split != "small"}
    stem = name.rstrip("/").rpartition("/")[2].split(".")[0]
    known = [archive for archive in ARCHIVES if archive.name == stem]
    known = known or [archive for archive in ARCHIVES if _is_like(archive, wnids, has_small)]
    if not known or kind in ("webdataset", "devkit"):
        return []
    archive = min(known, key=lambda one: (_distance(one, counts), one.name))
    published = f"the published {archive.name}"
    found = [
        f"{name} has {count:,}{f' {split}' if split else ''} images; {published} has {wanted:,}"
        for split, count, wanted in _compared(archive, counts)
        if abs(count - wanted) > archive.margin
    ]
    wanted = set(class_list(archive.classes))
    if has_small:
        wnids &= wanted  # the small classes of a processed set are further classes, in no list
    missing, others = wanted - wnids, wnids - wanted
    if missing or others:
        parts = [f"{name} has {len(wnids):,} classes; {published} has {len(wanted):,}"]
        parts += [f"missing: {listed(missing)}"] if missing else []
        parts += [f"not in it: {listed(others)}"] if others else []
        found.insert(0, "; ".join(parts))
    return found


def _is_like(archive: Archive, wnids: set[str], has_small: bool) -> bool:
    wanted = set(class_list(archive.classes))
    return wanted < wnids if has_small else wanted == wnids


def _distance(archive: Archive, counts: Mapping[str, int]) -> int:
    return sum(abs(count - wanted) for _, count, wanted in _compared(archive, counts))


def _compared(archive: Archive, counts: Mapping[str, int]) -> list[tuple[str, int, int]]:
    """Split, images found and images published; the totals if one of the two has no splits."""
    if set(counts) <= {""} or len(archive.images) == 1:
        return [("", sum(counts.values()), sum(archive.images.values()))]
    return [(split, counts.get(split, 0), wanted) for split, wanted in archive.images.items()]


def listed(wnids: Collection[str]) -> str:
    """The first of these classes, and how many more there are."""
    first = ", ".join(sorted(wnids)[:NAMED])
    return f"{first} and {len(wnids) - NAMED:,} more" if len(wnids) > NAMED else first
