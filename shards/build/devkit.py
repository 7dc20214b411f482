"""The ILSVRC2012 devkit: which class each validation image has.

`ILSVRC2012_img_val.tar` holds 50,000 images without a class; the devkit (`.tar.gz`, or the `.tar`
that some browsers turn it into) lists an ILSVRC id for each image; its `meta.mat` maps these ids to
WordNet ids. Kaggle gives WordNet ids instead, in `LOC_val_solution.csv`.
"""

import io
import tarfile
import zlib

from shards.build.archive import VAL_NAME, WNID, RawSource
from shards.dataset import store

TRUTH, META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"
KAGGLE, KAGGLE_HEADER = "LOC_val_solution.csv", "ImageId,PredictionString"
LARGEST_DEVKIT = 1 << 28


def labels(raw: RawSource) -> dict[str, str]:
    """WordNet id of each validation image by its file name."""
    truth, meta = _files(raw)
    wnids = _wnids(meta, raw.location)
    try:
        return {
            f"ILSVRC2012_val_{number:08d}.JPEG": wnids[int(line)]
            for number, line in enumerate(truth.split(), 1)
        }
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"{raw.location}: {TRUTH} has a line that is not an ILSVRC id ({error}); "
            "get the devkit again"
        ) from error


def is_kaggle_labels(name: str) -> bool:
    """Whether a file with this name (or path) is Kaggle's list of labels."""
    return name.rpartition("/")[2] == KAGGLE


def kaggle_labels(raw: RawSource) -> dict[str, str]:
    """WordNet id of each validation image by its file name, from Kaggle's list.

    A line is `ILSVRC2012_val_00048981,n03995372 85 1 499 272`: the image, and the class and box of
    each object in it, all of one class.
    """
    header, *lines = _data(raw).decode(errors="replace").splitlines() or [""]
    found = {}
    for line in lines:
        image, _, objects = line.partition(",")
        wnid = objects.partition(" ")[0]
        if VAL_NAME.fullmatch(f"{image}.JPEG") and WNID.fullmatch(wnid):
            found[f"{image}.JPEG"] = wnid
    if header != KAGGLE_HEADER or len(found) < max(1, len(lines)):
        raise ValueError(
            f"{raw.location} is not Kaggle's list of labels: {len(found)} of its {len(lines)} "
            f"lines give an image of ILSVRC2012_val and its class, below {KAGGLE_HEADER!r}; "
            "get it again"
        )
    return found


def _data(raw: RawSource) -> bytes:
    if raw.size > LARGEST_DEVKIT:
        raise ValueError(f"{raw.location} is too large for a devkit ({raw.size} bytes)")
    return store.read_bytes(raw.fs, raw.path)


def _files(raw: RawSource) -> tuple[bytes, bytes]:
    data = _data(raw)
    files = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as file:
            for member in file:
                base = member.name.rpartition("/")[2]
                if member.isfile() and base in (TRUTH, META):
                    files[base] = file.extractfile(member).read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(
            f"{raw.location} cannot be read as the ILSVRC2012 devkit ({error}); get it again"
        ) from error
    missing = {TRUTH, META} - set(files)
    if missing:
        names = " and ".join(sorted(missing))
        raise ValueError(f"{raw.location} is not the ILSVRC2012 devkit: it has no {names}")
    return files[TRUTH], files[META]


def _wnids(meta: bytes, where: str) -> dict[int, str]:
    # Takes half a second to import, and only this kind of source needs it.
    from scipy.io import loadmat

    try:
        synsets = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
        # The list includes inner nodes of the hierarchy; only leaves are classes.
        return {
            int(row["ILSVRC2012_ID"]): str(row["WNID"])
            for row in synsets
            if int(row["num_children"]) == 0
        }
    except (ValueError, KeyError, TypeError, IndexError, NotImplementedError) as error:
        raise ValueError(
            f"{where}: {META} cannot be read ({error}); get the devkit again"
        ) from error
