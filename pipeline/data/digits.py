"""The embedded data: scikit-learn's handwritten digits, in an archive like those of ImageNet.

The archive is a tar of one tar per class with JPEG members. It has some of the faults of the real
archives: two members are broken, one is greyscale and one is CMYK.
"""

import io
import logging
import tarfile
from pathlib import Path

from PIL import Image

from pipeline.settings.config import DIGITS
from shards.build.config import BuildConfig
from shards.build.pack import build
from shards.dataset import store, wordnet
from support.console import log_stage
from support.files import cache_dir, written

log = logging.getLogger(__name__)

# side of the images; the scans have 8 x 8 pixels
SIDE = 32
# held-out images of each class, about a fifth
VAL_PER_CLASS = 36
CLASSES = tuple(wordnet.DIGITS)


def located(data_dir: str, runs_dir: str) -> str:
    """Location of a run's shard set: `data.dir`, or that of the embedded set, among the runs."""
    return store.join(runs_dir, "data", DIGITS, "shards") if data_dir == DIGITS else data_dir


def made(data_dir: str, runs_dir: str) -> str:
    """The same location; the embedded set is built on first use, by the code for all sets."""
    location = located(data_dir, runs_dir)
    if data_dir == DIGITS:
        remote = "://" in location
        archive = (cache_dir() if remote else Path(location).parent) / "digits.tar"
        log_stage(1, 4, f"archive   {archive}")
        if not archive.exists():
            write_archive(archive)
        log_stage(2, 4, f"shards    {store.absolute(location)}")
        log.info("%s", build([archive], location, BuildConfig(val_per_class=VAL_PER_CLASS)))
    return location


def write_archive(path: Path) -> None:
    """Write the archive atomically, with the same bytes every time."""
    from sklearn.datasets import load_digits  # slow to import, and the workers do not need it

    digits = load_digits()
    members: dict[str, list[tuple[str, bytes]]] = {wnid: [] for wnid in CLASSES}
    for number, (scan, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        image = Image.fromarray((scan * (255 / 16)).astype("uint8"))
        image = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        mode = {0: "L", 1: "CMYK"}.get(number, "RGB")
        buffer = io.BytesIO()
        image.convert("RGB").convert(mode).save(buffer, "JPEG", quality=95)
        wnid = CLASSES[digit]
        members[wnid].append((f"{wnid}_{number}.JPEG", buffer.getvalue()))
    _, jpeg = members[CLASSES[3]][0]
    members[CLASSES[3]].append((f"{CLASSES[3]}_9001.JPEG", jpeg[: len(jpeg) // 2]))
    members[CLASSES[7]].append((f"{CLASSES[7]}_9002.JPEG", b"<html>404 Not Found</html>"))

    path.parent.mkdir(parents=True, exist_ok=True)
    with written(path) as aside, tarfile.open(aside, "w", format=tarfile.USTAR_FORMAT) as archive:
        for wnid, files in members.items():
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w", format=tarfile.USTAR_FORMAT) as tar:
                for name, data in files:
                    add(tar, name, data)
            add(archive, f"{wnid}.tar", inner.getvalue())


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Append a member to a tar."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
