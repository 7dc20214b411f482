"""Keys of samples, made from file names so that a sample can be traced to its file."""

import hashlib
import re

import numpy as np

_NOT_IN_KEYS = re.compile(r"[^A-Za-z0-9_-]")
_LONGEST_KEY = 80  # with suffix and extension it fits in the 100 characters of a USTAR name


def stem(member: str) -> str:
    """The key for a file name, with only characters that are safe in tar names and WebDataset."""
    base = member.rpartition("/")[2]
    name = base.rpartition(".")[0] or base
    return _NOT_IN_KEYS.sub("_", name)[:_LONGEST_KEY]


def stem_hashes(members: list[str]) -> np.ndarray:
    """64-bit hashes of the keys for file names, to find keys that clash."""
    raw = b"".join(hashlib.blake2b(stem(m).encode(), digest_size=8).digest() for m in members)
    return np.frombuffer(raw, np.uint64)
