"""Charts as SVG text: what is drawn, where, and what is kept out of the text."""

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import support
from support.chart import (
    HEIGHT,
    MAX_DOTS,
    WIDTH,
    Chart,
    bar_chart,
    line_chart,
    percentage,
    shades,
    short,
    ticks,
)
from support.curve import MAX_POINTS

CHROMIUM = shutil.which("chromium")
HIDDEN = "s3://KEY:S3CR3T@bucket"


def marks(svg, kind):
    """Elements of a CSS class."""
    return [each for each in ElementTree.fromstring(svg).iter() if each.get("class") == kind]


def points(path):
    """Corners of a path."""
    return [tuple(map(float, pair)) for pair in re.findall(r"[ML]([\d.]+) ([\d.]+)", path.get("d"))]


def texts(svg):
    return [each.text for each in ElementTree.fromstring(svg).iter("text")]


def titles(svg):
    return [each.text for each in ElementTree.fromstring(svg).iter("title")]


def test_a_chart_has_a_line_for_each_curve_and_none_for_what_is_not_there():
    lines = {"a": [(0, 1.0), (5, 1.5), (10, 2.0)], "b": [(0, math.nan), (1, math.inf)], "c": []}
    svg = line_chart(lines, name="x", label="step")
    (line,) = marks(svg, "line")
    (path,) = line.iter("path")
    (x0, y0), (x1, y1), (x2, y2) = points(path)
    assert x0 < x1 < x2 and y0 > y1 > y2  # up is less
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.02)
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.02)
    assert "step" in texts(svg) and "a" not in texts(svg)  # one line needs no legend
    assert line_chart({}, name="x") == line_chart({"a": []}, name="x") == ""


def test_several_lines_have_a_legend_and_different_strokes():
    names = [f"curve {number}" for number in range(14)]
    svg = line_chart({name: [(0, 1.0), (1, 2.0)] for name in names}, name="x")
    assert set(names) <= set(texts(svg))
    paths = [next(line.iter("path")) for line in marks(svg, "line")]
    assert len({path.get("style") for path in paths}) == 14
    bottom = float(ElementTree.fromstring(svg).get("viewBox").split()[3])
    assert bottom > HEIGHT and all(
        float(text.get("y")) < bottom for text in ElementTree.fromstring(svg).iter("text")
    )
    reference = line_chart({"a": [(0, 1)], "b": [(0, 0), (1, 1)]}, name="x", reference=["b"])
    assert "dasharray" not in next(marks(reference, "line")[0].iter("path")).get("style")
    assert "dasharray" in next(marks(reference, "line")[1].iter("path")).get("style")


def test_axes_have_round_ticks_that_cover_the_values():
    svg = line_chart({"a": [(0, 0.03), (480, 0.97)]}, name="x", percent=True)
    assert ["0", "100", "200", "300", "400"] == texts(svg)[:5]
    assert {"0%", "20%", "100%"} <= set(texts(svg))
    assert {"0.001", "1", "10"} <= set(
        texts(line_chart({"a": [(0, 2e-3), (1, 8.0)]}, name="x", logarithmic=True))
    )
    level = texts(line_chart({"a": [(0, 0.0), (9, 0.0)]}, name="x", percent=True))
    assert "0%" in level and not any("\u2212" in text or "-" in text for text in level)
    assert ticks(3, 97) == [20, 40, 60, 80]
    assert ticks(1e-3, 1e-1, logarithmic=True) == [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1]
    assert ticks(1e-6, 1.0, logarithmic=True) == pytest.approx([10.0**n for n in range(-6, 1)])


def test_a_thinned_line_is_drawn_within_its_extremes():
    line = [(float(i), float(i % 2)) for i in range(6000)]
    svg = line_chart({"a": line}, name="x")
    (path,) = marks(svg, "line")[0].iter("path")
    assert len(points(path)) == MAX_POINTS  # Matplotlib leaves no point out
    assert not marks(svg, "dots") and not marks(svg, "spike")
    (band,) = marks(svg, "band")
    heights = {y for _, y in points(band.find("path"))}
    assert len(heights) == 2  # from 0 to 1, all along
    assert not marks(line_chart({"a": line[:MAX_POINTS]}, name="x"), "band")


def test_a_band_has_its_extremes_and_a_spike_is_named_with_its_step():
    steps = range(50, 5050, 50)
    line = [(step, 3.0) for step in steps]
    highs = [(step, 9.31 if step == 1250 else 3.5) for step in steps]
    band = {"train/loss": ([(step, 2.5) for step in steps], highs)}
    svg = line_chart({"train/loss": line}, name="x", label="step", bands=band)
    (spike,) = marks(svg, "spike")
    assert [title.text for title in spike.iter("title")] == [
        "train/loss: 9.31 at step 1,250, mean 3"
    ]
    (use,) = spike.iter("use")
    top = min(y for _, y in points(marks(svg, "band")[0].find("path")))
    assert float(use.get("y")) == pytest.approx(top, abs=0.02)
    (told,) = [title for title in titles(svg) if title.endswith("train/loss: 3 (2.5 to 9.31)")]
    assert told.startswith("step 1,2")


@pytest.mark.skipif(not CHROMIUM, reason="there is no chromium; install Debian's")
def test_a_browser_finds_the_values_and_the_spike_under_the_pointer(tmp_path):
    steps = range(50, 5050, 50)
    band = [(s, 2.5) for s in steps], [(s, 9.31 if s == 1250 else 3.5) for s in steps]
    lines = {"train/loss": [(s, 3.0) for s in steps], "val/loss": [(2500, 2.0)]}
    svg = line_chart(lines, name="x", label="step", bands={"train/loss": band})
    (spike,) = (use for each in marks(svg, "spike") for use in each.iter("use"))
    places = [(284, 100), (float(spike.get("x")), float(spike.get("y")))]
    script = (
        "document.body.append(...%s.map(([x, y]) => {const found = document.createElement('pre');"
        "found.append(document.elementFromPoint(x, y).closest('use').textContent); return found}))"
    )
    style = (Path(support.__file__).parent / "templates/style.css").read_text()
    page = f"<style>{style} body {{ width: {WIDTH}px }}</style>{svg}"
    file = tmp_path / "page.html"
    file.write_text(f"<!doctype html>{page}<script>{script % json.dumps(places)}</script>")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", file.as_uri()]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert re.findall("<pre>(.*?)</pre>", found, re.DOTALL) == [
        "step 2,500 to 2,550\ntrain/loss: 3 (2.5 to 3.5)\nval/loss: 2",
        "train/loss: 9.31 at step 1,250, mean 3",
    ]


def test_charts_share_an_axis_and_name_the_moments_on_it():
    moments = {100.0: "resumed", 250.0: "learning rate times 0.5"}
    about = {"name": "x", "label": "step", "moments": moments, "until": 400}
    short, long = (line_chart({"a": [(0, 1.0), (end, 2.0)]}, **about) for end in (100, 400))
    for svg in (short, long):
        assert [text for text in texts(svg) if text in ("0", "100", "400")] == ["0", "100", "400"]
        assert [m.find("title").text for m in marks(svg, "moment")] == [*moments.values()]
    ends = [points(next(marks(svg, "line")[0].iter("path")))[-1][0] for svg in (short, long)]
    assert ends[0] == pytest.approx(58 + (ends[1] - 58) / 4, abs=0.02)
    assert "step 250\nlearning rate times 0.5" in titles(long)


def test_an_axis_chooses_to_be_logarithmic_when_it_is_asked_to():
    flat, wide = ([(x, y if x == 3 else 1.0) for x in range(9)] for y in (2.0, 1e4))
    chosen = [line_chart({"a": line}, name="x", logarithmic=None) for line in (flat, wide)]
    assert ["10k" in texts(svg) and "10" in texts(svg) for svg in chosen] == [False, True]
    assert "10" not in texts(line_chart({"a": wide}, name="x"))


def test_each_point_of_a_short_line_has_a_hover_text():
    svg = line_chart({"val/top1": [(60, 0.5), (1200, 0.75)]}, name="x", percent=True)
    (dots,) = marks(svg, "dots")
    told = [use.find("title").text for use in dots.iter("use")]
    assert told == ["val/top1: 50% at 60", "val/top1: 75% at 1,200"]
    assert marks(svg, "line")[0].find("title").text == "val/top1"
    many = line_chart({"a": [(i, i) for i in range(MAX_DOTS + 1)]}, name="x")
    assert not marks(many, "dots")


def test_bars_are_as_long_as_their_amounts():
    counts = {"JPEG RGB": 30, "JPEG L": 10, "none": 0, "a reason " * 8: 15}
    svg = bar_chart(counts, name="x", shown="{:,} files".format)
    lengths = []
    for bar in marks(svg, "bar"):
        across = [x for x, _ in points(bar.find("path"))]
        lengths.append(max(across) - min(across))
    assert lengths[0] == pytest.approx(3 * lengths[1], abs=0.1) and lengths[2] == 0
    assert lengths[0] == pytest.approx(2 * lengths[3], abs=0.1)
    assert {"JPEG RGB", "30 files", "0 files"} <= set(texts(svg))
    assert f"{'a reason ' * 8}: 15 files" in titles(svg)  # whole, where the label is cut
    assert max(map(len, texts(svg))) <= 40
    assert bar_chart({"a": 0}, name="x", shown=str) == bar_chart({}, name="x", shown=str) == ""


def test_text_is_escaped_and_has_no_secrets():
    names = {f"<script>{HIDDEN}</script>": [(0, 1.0)], "$x$ & b": [(1, 2.0)]}
    for svg in (
        line_chart(names, name="x", label=HIDDEN),
        bar_chart({name: 1 for name in names}, name="x", shown=str),
    ):
        assert "S3CR3T" not in svg and "s3://***@bucket" in svg
        assert "<script" not in svg and "$x$ & b" in " ".join(texts(svg))


@pytest.mark.filterwarnings("error")
def test_characters_that_xml_or_the_font_lacks_are_accepted():
    svg = bar_chart({"\x1b[31mred\x00": 1, "\u5b66\u7fd2": 2}, name="x", shown=str)
    assert {"[31mred", "\u5b66\u7fd2"} <= set(texts(svg)) and "[31mred: 1" in titles(svg)


def test_many_lines_are_named_under_the_pointer_only():
    svg = line_chart({f"gpu {n}": [(0, n)] for n in range(100)}, name="x", label="minutes")
    assert "100 lines, named under the pointer; minutes" in texts(svg)
    assert "gpu 7" not in texts(svg) and "gpu 7" in titles(svg)
    assert ElementTree.fromstring(svg).get("viewBox") == f"0 0 {WIDTH} {HEIGHT}"
    assert not marks(svg, "strip")  # it would cover the lines


def test_the_text_fits_into_a_page():
    svg = line_chart({"a": [(0, 1.0), (10, 2.0)], "b": [(0, 2.0), (10, 1.0)]}, name="loss")
    root = ElementTree.fromstring(svg)  # well-formed
    assert root.tag == "svg" and root.get("id") == "loss" and "width" not in root.attrib
    for word in ("<?xml", "<!DOCTYPE", "<!--", "xmlns", "http", "metadata", "<style", "DejaVu"):
        assert word not in svg
    # what has a colour of light and dark mode has no other
    assert not re.findall("#[0-9a-f]{6}", svg)
    assert {"var(--series-1)", "var(--series-2)", "var(--soft)", "var(--line)"} <= set(
        re.findall(r"var\([\w-]+\)", svg)
    )
    assert len(svg) < 6000


def test_the_same_chart_has_the_same_bytes_in_every_process():
    code = (
        "import sys; from support.chart import line_chart; "
        "sys.stdout.write(line_chart({'a': [(0, 1), (3, 2)]}, name='x'))"
    )
    told = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert told[0].stdout == told[1].stdout == line_chart({"a": [(0, 1), (3, 2)]}, name="x")


def test_ids_of_charts_on_one_page_differ_and_all_that_is_used_is_there():
    lines = {"a": [(0, 1.0), (10, 2.0)], "b": [(0, 2.0)]}
    both = line_chart(lines, name="first") + line_chart(lines, name="second")
    ids = re.findall(r' id="([^"]+)"', both)
    assert len(ids) == len(set(ids)) > 2
    assert set(re.findall(r'(?:href="|url\()#([\w-]+)', both)) <= set(ids)


def test_a_chart_of_ones_own_has_classes_hover_texts_and_an_image():
    chart = Chart("map", height=300)
    chart.axes.set(xlim=(0, 1), ylim=(0, 1))
    box = {"extent": (0, 1, 0, 1), "aspect": "auto", "interpolation": "none"}
    chart.mark(chart.axes.imshow(shades(np.eye(4)), **box), "surface")
    chart.mark(chart.axes.annotate("best", (0.5, 0.5)), "halo", "the best")
    chart.dots([(0.5, 0.5), (2.0, 2.0)], "trial", ["one", "outside"])
    svg = chart.svg()
    (image,) = marks(svg, "surface")
    assert image.tag == "image" and image.get("href").startswith("data:image/png;base64,")
    assert "style" not in image.attrib and image.get("width") == "4"  # the browser enlarges it
    assert [use.find("title").text for use in marks(svg, "trial")[0].iter("use")][0] == "one"
    assert marks(svg, "halo")[0].find("title").text == "the best"


def test_numbers_are_short():
    assert [short(v) for v in (0, 0.25, 250, 12_500, 1.2e6, 3e-5)] == [
        *("0", "0.25", "250", "12.5k", "1.2M", "3e-05"),
    ]
    assert percentage(0.125) == "12.5%" and percentage(0.99995) == "99.995%"


def test_shades_go_from_dark_to_light():
    colours = shades(np.linspace(-1, 2, 20))
    light = colours[:, :3] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(light) >= 0).all() and light[0] < 0.1 and light[-1] > 0.8
