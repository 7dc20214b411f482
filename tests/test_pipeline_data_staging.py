"""Batches on their way to the device: whole, and never over a buffer that is still being copied."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from pipeline.data.staging import BUFFERS, HostBuffer, Rotation, Staging, filled

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Copy:
    """A copy that is done when somebody has waited for it."""

    def __init__(self) -> None:
        self.done = False

    def synchronize(self) -> None:
        self.done = True


def pieces(*sizes: int, widths: tuple[int, ...] | None = None) -> list[dict[str, np.ndarray]]:
    """Read-only views, as blocks have them."""
    first, found = 0, []
    for size, width in zip(sizes, widths or (1,) * len(sizes), strict=True):
        rows = np.arange(first, first + size)
        images = np.broadcast_to(
            (rows % 256).astype(np.uint8)[:, None, None, None], (size, 4, 4, 3)
        )
        found.append({"images": images, "labels": np.tile(rows[:, None], width)})
        first += size
    return found


def test_a_buffer_is_not_given_out_before_its_copy_is_done():
    rotation = Rotation(3, pinned=False)
    given = []
    for _ in range(9):
        buffer = rotation.next()
        assert all(copy.done for other, copy in given if other is buffer)
        # waiting for a copy any earlier would make the host wait for nothing
        assert [copy.done for _, copy in given[-2:]] == [False] * len(given[-2:])
        buffer.copied = Copy()
        given.append((buffer, buffer.copied))
    assert all(one is not other for (one, _), (other, _) in pairwise(given))


def test_a_buffer_uses_its_memory_again_and_grows():
    buffer = HostBuffer()
    first = buffer.column("images", (4, 2), torch.uint8)
    assert buffer.column("images", (2, 3), torch.uint8).data_ptr() == first.data_ptr()
    assert buffer.column("images", (9, 9), torch.uint8).shape == (9, 9)
    assert buffer.column("labels", (2, 1), torch.int64).dtype == torch.int64


def test_pieces_are_joined_and_labels_padded_to_the_widest():
    parts = [piece["labels"] for piece in pieces(2, 1, 3, widths=(1, 3, 2))]
    found = filled(HostBuffer(), "labels", parts)
    assert found.tolist() == [
        *([0, -1, -1], [1, -1, -1], [2, 2, 2]),
        *([3, 3, -1], [4, 4, -1], [5, 5, -1]),
    ]


def test_batches_on_a_cpu_are_tensors_of_their_own():
    staging = Staging(torch.device("cpu"))
    batches = [staging(pieces(3, 5), ("images", "labels")).on_device() for _ in range(BUFFERS + 2)]
    assert len({batch["images"].data_ptr() for batch in batches}) == BUFFERS + 2
    for batch in batches:
        assert batch["images"].shape == (8, 4, 4, 3) and batch["images"].dtype == torch.uint8
        assert batch["images"][:, 0, 0, 0].tolist() == list(range(8))
        batch["images"][0] = 9  # nobody else reads it


@pytest.mark.gpu
@needs_gpu
def test_batches_on_a_gpu_are_whole_while_it_computes_and_buffers_rotate():
    device = torch.device("cuda")
    staging, work = Staging(device), torch.randn(4096, 4096, device=device)
    draw, given, found = np.random.default_rng(0), [], []
    for _ in range(8 * BUFFERS):
        images = draw.integers(0, 256, (64, 224, 224, 3), np.uint8)
        labels = draw.integers(0, 9, (64, 1))
        halves = [
            {"images": images[rows], "labels": labels[rows]}
            for rows in (slice(0, 20), slice(20, 64))
        ]
        staged = staging(halves, ("images", "labels"))
        work = work @ work / 4096  # the stream of the computation is busy while the copy runs
        columns = staged.on_device()
        found.append((columns["images"].long().sum(), columns["labels"].sum()))
        given.append((int(images.astype(np.int64).sum()), int(labels.sum())))
    assert [(int(images), int(labels)) for images, labels in found] == given
