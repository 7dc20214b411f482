"""Each RandAugment operation against what the reference's own code made, and its definition."""

from pathlib import Path

import numpy as np
import pytest

from vit.draws import Draws
from vit.randaugment import (
    GREY,
    NAMES,
    OPERATIONS,
    autocontrast,
    blend,
    brightness,
    color,
    contrast,
    cutout,
    equalize,
    posterize,
    randaugment,
    rotate,
    sharpness,
    solarize,
    solarize_add,
    warp,
)

ALL = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)  # each value once per channel
NOISE = np.random.default_rng(0).integers(0, 256, (24, 30, 3), dtype=np.uint8)


def test_there_are_googles_sixteen():
    assert NAMES == (
        *("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "Color"),
        *("Contrast", "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY"),
        *("Cutout", "SolarizeAdd"),
    )


def apply(name, pixels, magnitude, seed=0):
    return OPERATIONS[name](pixels, magnitude / 10, Draws(seed))


# what big_vision's own code made of one photo; `source` in the file says how
ORACLE = np.load(Path(__file__).parent / "data" / "randaugment.npz")
SEEDS = {sign: next(s for s in range(99) if Draws(s).sign() == sign) for sign in (-1, 1)}
# share of pixels that may differ, because of rounding; not named: none
ROUNDED = {"Color": 0.02, "Sharpness": 0.05, "Rotate": 0.01, "ShearX": 0.03, "ShearY": 0.03}


def test_the_oracle_has_every_operation_but_cutout():
    assert {key.partition("/")[0] for key in ORACLE} - {"source", "input"} == {*NAMES} - {"Cutout"}


@pytest.mark.parametrize("key", [key for key in ORACLE if "/" in key])
def test_operations_make_what_the_references_code_makes(key):
    name, magnitude, sign = key.split("/")
    out = apply(name, ORACLE["input"], float(magnitude), SEEDS[int(sign)])[::3, 1::4]
    difference = np.abs(out.astype(int) - ORACLE[key]).max(2)
    assert (difference > 0).mean() <= ROUNDED.get(name, 0)
    if name in ("Color", "Sharpness"):
        assert difference.max() <= 3


def test_contrast_blends_with_196_whatever_is_in_a_view():
    for pixels in (ALL, NOISE):
        view = np.resize(pixels, (224, 224, 3))
        expected = (196 + 0.1 * (view.astype(float) - 196)).astype(np.uint8)
        assert np.abs(contrast(view, 0.1).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("magnitude", [0, 10, 20])
def test_solarize_inverts_the_whole_image_where_its_threshold_wraps(magnitude):
    np.testing.assert_array_equal(apply("Solarize", NOISE, magnitude), 255 - NOISE)
    np.testing.assert_array_equal(solarize(NOISE, 256), 255 - NOISE)


@pytest.mark.parametrize("magnitude, bits", [(0, 1), (5, 2), (10, 4), (15, 6), (20, 8), (30, 1)])
def test_posterize_keeps_the_highest_bits_and_at_least_one(magnitude, bits):
    expected = ALL // 2 ** (8 - bits) * 2 ** (8 - bits)
    np.testing.assert_array_equal(apply("Posterize", ALL, magnitude), expected)
    np.testing.assert_array_equal(posterize(NOISE, 8), NOISE)


@pytest.mark.parametrize("magnitude, addition", [(0, 0), (10, 110), (20, 220)])
def test_solarize_add_brightens_the_dark_half(magnitude, addition):
    wide = ALL.astype(int)
    expected = np.where(wide < 128, np.minimum(wide + addition, 255), wide)
    np.testing.assert_array_equal(apply("SolarizeAdd", ALL, magnitude), expected)
    np.testing.assert_array_equal(solarize_add(ALL, 0), ALL)


def test_invert():
    np.testing.assert_array_equal(apply("Invert", ALL, 7), 255 - ALL)


def test_autocontrast_stretches_each_channel():
    pixels = np.zeros((4, 4, 3), np.uint8)
    pixels[..., 0] = np.arange(16).reshape(4, 4) * 4 + 50  # 50 ... 110
    pixels[..., 1] = 77
    pixels[..., 2] = np.arange(16).reshape(4, 4) * 17  # already whole
    out = autocontrast(pixels)
    assert out[..., 0].min() == 0 and out[..., 0].max() == 255
    expected = (pixels[..., 0].astype(np.float32) - 50) * np.float32(255 / 60)
    assert np.abs(out[..., 0] - expected).max() <= 1
    np.testing.assert_array_equal(out[..., 1:], pixels[..., 1:])


def test_equalize_is_pillows():
    Image = pytest.importorskip("PIL.Image")
    from PIL import ImageOps

    for pixels in (NOISE, NOISE // 3 + 40, np.full_like(NOISE, 9), ALL):
        expected = np.asarray(ImageOps.equalize(Image.fromarray(pixels)))
        np.testing.assert_array_equal(equalize(pixels), expected)


def test_blend_truncates_extrapolates_and_clips():
    start, end = np.array([[10, 200, 100]], np.uint8), np.array([[13, 100, 101]], np.uint8)
    np.testing.assert_array_equal(blend(start, end, 0), start)
    np.testing.assert_array_equal(blend(start, end, 1), end)
    np.testing.assert_array_equal(blend(start, end, 0.5), [[11, 150, 100]])
    np.testing.assert_array_equal(blend(start, end, 3), [[19, 0, 103]])


def luma(pixels):
    return (pixels.astype(np.float32) @ np.float32([0.2989, 0.587, 0.114]) / 255 * 255.5).astype(
        int
    )


@pytest.mark.parametrize("magnitude, factor", [(0, 0.1), (5, 1.0), (10, 1.9)])
def test_enhancers_blend_with_their_degenerate_image(magnitude, factor):
    wide = NOISE.astype(np.float64)
    for name, start in (
        ("Color", luma(NOISE)[..., None]),
        ("Contrast", 24 * 30 // 256),
        ("Brightness", 0),
    ):
        expected = (start + factor * (wide - start)).clip(0, 255)
        out = apply(name, NOISE, magnitude)
        assert np.abs(out - expected).max() < 1.01 + (name == "Color"), name
    for enhance in (color, contrast, brightness, sharpness):
        np.testing.assert_array_equal(enhance(NOISE, 1.0), NOISE)


def test_sharpness_smooths_all_but_the_border():
    wide = NOISE.astype(float)
    sums = sum(
        wide[1 + y : 23 + y, 1 + x : 29 + x] * (5 if x == y == 0 else 1)
        for y in (-1, 0, 1)
        for x in (-1, 0, 1)
    )
    smooth = wide.copy()
    smooth[1:-1, 1:-1] = np.floor(sums / 13)
    for factor in (0.1, 1.9):
        expected = (smooth + factor * (wide - smooth)).clip(0, 255)
        assert np.abs(sharpness(NOISE, factor) - expected).max() < 2.01
        np.testing.assert_array_equal(sharpness(NOISE, factor)[0], NOISE[0])


def test_translation_moves_by_ten_pixels_per_level_and_fills_grey():
    pixels = np.random.default_rng(1).integers(0, 256, (130, 140, 3), dtype=np.uint8)
    for seed in range(8):
        right = Draws(seed).sign() < 0
        out = apply("TranslateX", pixels, 2, seed)
        if right:
            np.testing.assert_array_equal(out[:, 20:], pixels[:, :-20])
            assert (out[:, :20] == GREY).all()
        else:
            np.testing.assert_array_equal(out[:, :-20], pixels[:, 20:])
            assert (out[:, -20:] == GREY).all()
        down = apply("TranslateY", pixels, 10, seed)
        moved = down[100:], pixels[:-100]
        np.testing.assert_array_equal(*(moved if right else (down[:-100], pixels[100:])))
    assert (apply("TranslateX", NOISE, 10) == GREY).all()  # 100 of 30 pixels
    np.testing.assert_array_equal(apply("TranslateX", NOISE, 0), NOISE)


def test_shear_moves_rows_in_proportion():
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, 40] = 255
    for seed in range(6):
        slope = Draws(seed).sign() * 0.3
        out = apply("ShearX", pixels, 10, seed)
        columns = (out == 255).all(2).argmax(1)
        np.testing.assert_allclose(columns, 40 - slope * np.arange(40), atol=0.51)
        turned = apply("ShearY", pixels.transpose(1, 0, 2).copy(), 10, seed)
        assert (turned.transpose(1, 0, 2) != out).mean() < 0.002  # ties at the edge
    np.testing.assert_array_equal(apply("ShearX", NOISE, 0), NOISE)


def test_rotation_is_about_the_centre_up_to_thirty_degrees():
    np.testing.assert_array_equal(rotate(NOISE, 0), NOISE)
    square = np.random.default_rng(2).integers(0, 256, (21, 21, 3), dtype=np.uint8)
    np.testing.assert_array_equal(rotate(square, 180), square[::-1, ::-1])
    np.testing.assert_array_equal(rotate(square, 90), np.rot90(square))
    out = apply("Rotate", square, 10, 0)
    np.testing.assert_array_equal(out, rotate(square, Draws(0).sign() * 30))
    np.testing.assert_array_equal(out[10, 10], square[10, 10])
    assert (out[0, 0] == GREY).all() and (out[-1, -1] == GREY).all()


@pytest.mark.parametrize("magnitude, half", [(0, 0), (5, 20), (10, 40), (20, 80)])
def test_cutout_greys_a_square_cut_off_by_the_edge(magnitude, half):
    pixels = np.zeros((224, 224, 3), np.uint8)
    for seed in range(20):
        draws = Draws(seed)
        y, x = draws.integer(224), draws.integer(224)
        out = apply("Cutout", pixels, magnitude, seed)
        rows, columns = np.nonzero(out[..., 0])
        if not half:
            assert not out.any()
            continue
        assert rows.min() == max(0, y - half) and rows.max() == min(223, y + half - 1)
        assert columns.min() == max(0, x - half) and columns.max() == min(223, x + half - 1)
        assert len(rows) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        assert (out[rows, columns] == GREY).all()
    assert not cutout(pixels, 0, Draws(0)).any()


@pytest.mark.parametrize("magnitude", [0, 10, 20, 30])
@pytest.mark.parametrize("name", NAMES)
def test_every_operation_keeps_shape_and_type_and_its_input(name, magnitude):
    for shape in ((224, 224, 3), (1, 1, 3), (2, 7, 3)):
        pixels = np.random.default_rng(3).integers(0, 256, shape, dtype=np.uint8)
        before = pixels.copy()
        out = apply(name, pixels, magnitude, seed=5)
        assert out.shape == shape and out.dtype == np.uint8
        np.testing.assert_array_equal(pixels, before)


def test_layers_draw_operations_evenly_and_in_sequence(monkeypatch):
    drawn = []
    for name in NAMES:
        monkeypatch.setitem(
            OPERATIONS, name, lambda p, level, draws, name=name: drawn.append((name, level)) or p
        )
    for seed in range(2000):
        randaugment(NOISE, 2, 15, Draws(seed))
    counts = [sum(name == n for n, _ in drawn) for name in NAMES]
    assert len(drawn) == 4000 and min(counts) > 190 and max(counts) < 310
    assert {level for _, level in drawn} == {1.5}
    drawn.clear()
    assert randaugment(NOISE, 0, 15, Draws(0)) is NOISE and not drawn


def test_signs_of_geometric_operations_are_fair():
    pixels = np.zeros((40, 200, 3), np.uint8)
    pixels[:, 100] = 255
    left = sum(
        int((apply("TranslateX", pixels, 5, seed) == 255).all(2).argmax(1)[0] < 100)
        for seed in range(400)
    )
    assert 160 < left < 240
    np.testing.assert_array_equal(warp(NOISE, [[1, 0, 0], [0, 1, 0]]), NOISE)
