"""Passes: how many images fit in a GPU's memory, and how a share is cut."""

import pytest
import torch

from pipeline.data.order import largest_share
from pipeline.settings.config import TrainConfig
from pipeline.train import worker
from pipeline.train.passes import fitting, pass_limit, passes
from vit.config import ViTConfig

GIB = 2**30
CPU = torch.device("cpu")


def run(name, classes=21_843, **settings):
    settings = {"global_batch": 256, **settings}
    return TrainConfig(model=ViTConfig.named(name, num_classes=classes), **settings)


@pytest.mark.parametrize(
    ("images", "limit", "mixes", "sizes"),
    [
        (342, 256, True, [170, 172]),
        (340, 256, True, [170, 170]),
        (26, 14, True, [12, 14]),
        (256, 256, True, [256]),
        (2, 256, True, [2]),
        (10, 3, False, [2, 3, 2, 3]),
        (5, 1, False, [1] * 5),
        (7, 256, False, [7]),
    ],
)
def test_passes_have_nearly_the_same_size(images, limit, mixes, sizes):
    rows = passes(images, images, limit, mixes=mixes)
    assert [each.stop - each.start for each in rows] == sizes


@pytest.mark.parametrize(
    ("images", "most", "limit", "sizes"),
    [(340, 342, 170, [112, 114, 114]), (10, 12, 10, [4, 6]), (2, 4, 2, [0, 2])],
)
def test_a_smaller_share_is_cut_into_as_many_passes_as_the_largest(images, most, limit, sizes):
    rows = passes(images, most, limit, mixes=True)
    assert [each.stop - each.start for each in rows] == sizes
    assert len(rows) == len(passes(most, most, limit, mixes=True))


def test_no_pass_exceeds_the_limit_or_separates_a_pair():
    for images in range(2, 200, 2):
        for limit in range(2, 64, 2):
            rows = passes(images, images, limit, mixes=True)
            sizes = [each.stop - each.start for each in rows]
            assert sum(sizes) == images and max(sizes) <= limit
            assert len(sizes) == -(-images // limit)
            assert max(sizes) - min(sizes) <= 2 and not any(each.start % 2 for each in rows)


@pytest.mark.parametrize(
    ("batch", "workers", "share"), [(4096, 12, 342), (22, 2, 12), (7, 2, 4), (7, 1, 7)]
)
def test_the_largest_share_is_known_without_asking(batch, workers, share):
    assert largest_share(batch, workers) == share


def test_a_given_size_of_passes_is_taken_and_cpus_have_a_default():
    assert pass_limit(run("S/32", micro_batch=48), CPU, 1) == 48
    assert pass_limit(run("S/32"), CPU, 1) == 256


# model, images of a pass, type of the residual stream, peak in GiB: on an H200, compiled, with
# AdamW, no average, 21,843 classes
MEASURED = [
    ("B/16", 256, "fp32", 16.82),
    ("B/16", 256, "bf16", 15.19),
    ("S/16", 256, "bf16", 7.44),
    ("S/32", 512, "bf16", 4.33),
    ("L/16", 128, "bf16", 24.94),
]


@pytest.mark.parametrize(("name", "images", "residual", "peak_gib"), MEASURED)
def test_what_was_measured_fits_and_less_than_half_is_left_free(name, images, residual, peak_gib):
    config = run(name, residual=residual, global_batch=images)
    memory = peak_gib * GIB / 0.8  # a GPU of which the run took all that is used
    assert images / 2 < fitting(config, memory) <= images


def test_less_fits_without_compiling_in_float32_and_of_larger_images():
    whole = fitting(run("B/16"), 80 * GIB)
    assert whole > 800 and whole % 2 == 0
    assert fitting(run("B/16", compile=False), 80 * GIB) == pytest.approx(whole / 2, rel=0.05)
    assert fitting(run("B/16", precision="fp32"), 80 * GIB) == pytest.approx(whole / 2, rel=0.05)
    large = run("B/16").replace({"model.image_size": 384})
    assert whole / 3.2 < fitting(large, 80 * GIB) < whole / 2.8


def test_checkpointed_blocks_and_shards_leave_room_for_more():
    config = run("g/14")
    checkpointed = config.replace({"model.checkpoint_blocks": True})
    assert fitting(checkpointed, 80 * GIB) > 4 * fitting(config, 80 * GIB)
    assert fitting(config, 80 * GIB, shards=8) > 1.2 * fitting(config, 80 * GIB)


def test_batches_that_wait_on_the_device_take_their_room():
    config = run("S/32", global_batch=4096)
    alone, eight = fitting(config, 16 * GIB), fitting(config, 16 * GIB, workers=8)
    pixels = (4096 - 512) * 3 * 224**2 * (config.data.prefetch_batches + 2)
    kept = 40 * 50 * 384 * 12 + 24 * 21_843 + 8 * 3 * 224**2
    assert eight - alone == pytest.approx(pixels / kept, abs=4)


def test_a_model_that_fits_no_gpu_is_refused_with_what_helps():
    config = run("g/14")
    with pytest.raises(ValueError, match=r"two images need more than 80% of a GPU's 16 GiB; set"):
        fitting(config, 16 * GIB)


def test_a_gpu_that_is_full_ends_the_run_with_what_helps():
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    assert isinstance(error, worker.FATAL)
    assert "allocate 2.00 GiB. Resume with a smaller --micro-batch" in worker.told(error)
    assert "micro-batch" not in worker.told(ValueError("no"))
