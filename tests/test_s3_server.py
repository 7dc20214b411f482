"""The store of the tests does what S3 does, as far as pyarrow can tell."""

import pytest
import s3_server
from pyarrow import fs as pafs

from shards.dataset import store


@pytest.fixture
def bucket(monkeypatch):
    """URI of an empty bucket."""
    with s3_server.serving("bkt") as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        yield "s3://bkt"


def test_files_are_written_listed_read_in_ranges_moved_and_removed(bucket):
    system, root = store.locate(f"{bucket}/a")
    store.make_folder(system, root)
    big = bytes(range(256)) * 100_000  # more than one part of an upload
    store.write_bytes(system, f"{root}/big", big)
    store.write_bytes(system, f"{root}/sub/x & y.txt", b"small")
    assert [info.base_name for info in store.listing(system, root)] == ["big", "sub"]
    assert store.size_of(system, f"{root}/big") == len(big)
    assert store.read_bytes(system, f"{root}/big") == big
    assert store.RangeReader(system, f"{root}/big", 1000)(70_000, 3000) == big[70_000:73_000]
    assert store.read_bytes(system, f"{root}/sub/x & y.txt") == b"small"
    selector = pafs.FileSelector(root, recursive=True)
    assert len([i for i in system.get_file_info(selector) if i.type == pafs.FileType.File]) == 2
    system.delete_dir(f"{root}/sub")
    store.discard(system, f"{root}/big")
    assert store.listing(system, root) == []


def test_what_is_not_there_is_not_found(bucket):
    system, root = store.locate(f"{bucket}/a")
    assert not store.exists(system, f"{root}/none")
    with pytest.raises(FileNotFoundError):
        store.read_bytes(system, f"{root}/none")
    with pytest.raises(OSError, match="NO_SUCH_KEY"):
        system.copy_file(f"{root}/none", f"{root}/other")


def test_a_failed_write_leaves_nothing(bucket):
    system, root = store.locate(f"{bucket}/a")
    with pytest.raises(RuntimeError), store.written(system, f"{root}/file") as stream:
        stream.write(b"half")
        raise RuntimeError
    assert store.listing(system, root) == []


def test_a_long_listing_comes_in_pages(bucket, monkeypatch):
    monkeypatch.setattr(s3_server, "PAGE", 3)
    system, root = store.locate(f"{bucket}/many")
    names = [f"{number:02d}" for number in range(10)]
    for name in names:
        store.write_bytes(system, f"{root}/{name}", b"x")
        store.write_bytes(system, f"{root}/folder-{name}/inner", b"x")
    expected = names + [f"folder-{name}" for name in names]
    assert [info.base_name for info in store.listing(system, root)] == expected
