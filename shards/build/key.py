"""Keys of samples, made from file names so that a sample can be traced to its file."""

import hashlib
import re
from collections.abc import Iterable

import numpy as np

_NOT_IN_KEYS = re.compile(r"[^A-Za-z0-9_-]")
_LONGEST_KEY = 76  # with suffixes and extension it fits in the 100 characters of a USTAR name


def stem(member: str) -> str:
    """The key for a file name, with only characters that are safe in tar names and WebDataset."""
    base = member.rpartition("/")[2]
    name = base.rpartition(".")[0] or base
    return _NOT_IN_KEYS.sub("_", name)[:_LONGEST_KEY]


def key_hashes(keys: Iterable[str]) -> np.ndarray:
    """64-bit hashes of keys, to find keys that occur twice."""
    raw = b"".join(hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys)
    return np.frombuffer(raw, np.uint64)
