"""One sample of a shard: its members in the tar, its image and its class numbers."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from shards.dataset import tar
from shards.dataset.walker import grouped

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
LARGEST_CLASS = 9_999_999
"""A larger number is no class but, for example, a hash; the list of classes would fill memory."""


@dataclass(frozen=True)
class Sample:
    """One sample of a shard: key, view of the image bytes, and class numbers."""

    key: str
    image: memoryview
    extension: str
    classes: tuple[int, ...]


def sample_members(key: str, image: bytes, classes: tuple[int, ...]) -> Iterator[tuple[str, bytes]]:
    """Names and contents of a sample's members, in the order of writing."""
    yield f"{key}.cls", str(classes[0]).encode()
    yield f"{key}.jpg", image
    if len(classes) > 1:  # other readers use only .cls, which holds one class
        yield f"{key}.json", json.dumps({"classes": list(classes)}).encode()


def parse_samples(data: bytes | memoryview, where: str, label: str = "cls") -> Iterator[Sample]:
    """Samples in a byte range that starts and ends between samples; raises ValueError otherwise."""
    view = memoryview(data)

    def read(offset: int, size: int) -> memoryview:
        return view[offset : offset + size]

    for files in grouped(tar.walk(read, 0, len(view), where), read, where):
        yield record(files.key, files.parts, f"{where}: byte {files.start}", label)


def record(key: str, parts: Mapping[str, memoryview], where: str, label: str) -> Sample:
    """A sample from the contents of its members by extension."""
    for extension in IMAGE_EXTENSIONS:
        if extension in parts:
            return Sample(key, parts[extension], extension, labels(key, parts, where, label))
    raise ValueError(
        f"{where}: sample {key!r} has no image, only {sorted(parts)}; image extensions: "
        f"{', '.join(IMAGE_EXTENSIONS)}"
    )


def check_label(label: str) -> None:
    """Raise ValueError unless it is a rule that `labels` knows."""
    if label != "cls" and not re.fullmatch("json:.+", label):
        raise ValueError(f"label rule {label!r} is unknown; known are cls and json:FIELD")


def labels(
    key: str, parts: Mapping[str, memoryview], where: str, label: str = "cls"
) -> tuple[int, ...]:
    """Class numbers of a sample under the manifest's label rule."""
    kind, _, name = label.partition(":")
    try:
        if kind == "cls":
            extra = bytes(parts["json"]) if "json" in parts else b""
            # Only our json has "classes"; the search avoids parsing that of other tools.
            numbers = json.loads(extra).get("classes") if b'"classes"' in extra else None
            if numbers is None:
                numbers = [bytes(parts["cls"])]
        else:
            value = json.loads(bytes(parts["json"]))[name]
            numbers = value if isinstance(value, list) else [value]
        classes = tuple(map(_class_number, numbers))
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{where}: sample {key!r} has no label as {label!r} among {sorted(parts)} "
            f"({type(error).__name__}: {error})"
        ) from error
    if not classes or not 0 <= min(classes) <= max(classes) <= LARGEST_CLASS:
        raise ValueError(
            f"{where}: sample {key!r} has labels {classes}; labels count from 0 to {LARGEST_CLASS}"
        )
    return classes


def _class_number(value: object) -> int:
    """A class number from a number or its text: 3, 3.0, "3"; not 3.5, true or "cat"."""
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError(f"{value!r} is not a class number")
    return int(value)
