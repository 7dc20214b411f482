"""What a set is described as, the command line, class lists and the names of classes."""

import dataclasses
import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from archives import WNIDS, class_images, nested, small_archive
from test_support_page import Page

from shards.__main__ import main
from shards.build.config import BuildConfig
from shards.build.estimate import estimate
from shards.build.pack import build
from shards.check import page
from shards.check.histogram import Tally
from shards.check.info import describe
from shards.dataset import classes, wordnet

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("info")
    members = class_images(WNIDS[0], 8)
    data = {WNIDS[0]: members, WNIDS[1]: [("x.JPEG", b"broken"), ("y.JPEG", members[0][1])]}
    (folder / "a.tar").write_bytes(nested(data))
    build([folder / "a.tar"], folder / "set", BuildConfig(resize_short=32, val_per_class=2))
    return folder / "set"


def test_description_counts_what_is_there(made):
    told = describe(str(made))
    assert told.classes == 2 and sum(split.images for split in told.splits.values()) == 8
    assert sum(split.multi_label for split in told.splits.values()) == 1
    assert told.short_side == {"32 to 34.9": 8} and sum(told.aspect.values()) == 8
    assert told.most[0] == (WNIDS[0], "tench, Tinca tinca", 8)
    assert told.built["quarantined_count"] == 1 and told.built["duplicates"] == 1
    text = str(told)
    assert "no image in a known format" in text and "JPEG RGB" in text


def test_info_as_json_and_as_a_page(made, tmp_path, capsys):
    assert main(["info", str(made), "--json", "--html", str(tmp_path / "page.html")]) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == 2
    content = (tmp_path / "page.html").read_text()
    shown = Page(content)
    shown.assert_stands_alone()
    assert "http" not in content
    # formats and reasons; eight images hardly differ; each as a thumbnail
    assert shown.tags.count("svg") == 2 and shown.tags.count("img") == 8
    assert content.count('class="bar"') == 1 + 1
    words = " ".join(shown.words)
    for word in (
        *(str(made), "train", "val", "2", "overhead", "multi-label", "tench, Tinca tinca"),
        *(WNIDS[0], "32, of all images", "JPEG RGB", "copies merged"),
        *("of 10 files gave no image", "no image in a known format", "images excluded"),
    ):
        assert word in words, word
    assert words.count("tench") == 1 + 1 + 8  # largest and smallest classes, thumbnails


def test_page_names_what_is_in_it_without_markup_and_secrets(made, tmp_path):
    told = describe(str(made))
    strange = dataclasses.replace(
        told,
        location="s3://KEY:S3CR3T@bucket/<b>set</b>",
        most=((WNIDS[0], "<script>alert(1)</script>", 8),),
        built={},
    )
    page.write(str(tmp_path / "page.html"), strange, str(made))
    content = (tmp_path / "page.html").read_text()
    assert "s3://***@bucket/&lt;b&gt;set&lt;/b&gt;" in content and "S3CR3T" not in content
    assert "script" not in Page(content).tags
    assert "left out" not in content  # nothing is known of the build


def test_bins_have_equal_ratios_and_hold_every_value_once():
    draw = np.random.default_rng(0)
    values = np.concatenate([draw.lognormal(5.7, 0.4, 5000), [256.0, 512.0, 3.0, 9000.0]])
    tally, centred = Tally(8), Tally(8, centred=True)
    for part in np.array_split(values, 7):
        tally.add(part)
        centred.add(part / 256)
    told = tally.histogram()
    lows, highs, numbers = map(np.array, zip(*told.bins, strict=True))
    assert highs[:-1].tolist() == lows[1:].tolist() and 256.0 in lows
    assert np.log2(highs / lows) == pytest.approx(1 / 8)
    assert numbers.tolist() == np.histogram(values, [*lows, highs[-1]])[0].tolist()
    assert (told.smallest, told.largest, told.total) == (3.0, 9000.0, 5004)
    assert numbers[0] == numbers[-1] == 1
    # without the far ends, which hold a thousandth at most each
    outside = told.total - sum(number for *_, number in told.central)
    assert 2 <= outside <= 10 and told.central[0][0] > 50 and told.central[-1][1] < 2000
    (one,) = [each for each in centred.histogram().bins if each[0] < 1 < each[1]]
    assert one[0] * one[1] == pytest.approx(1)
    assert Tally(8).histogram().central == ()


def test_of_whole_numbers_every_bin_holds_some():
    tally = Tally(4, whole=True)
    tally.add(np.arange(1, 40))  # one class of each size
    told = tally.histogram()
    lows, highs, numbers = map(np.array, zip(*told.bins, strict=True))
    assert lows[:9].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 10]
    assert numbers[:-1].tolist() == (highs - lows)[:-1].tolist()  # as many as it has numbers
    svg, _ = page.histogram(told, "classes", "classes")
    assert "<title>4: 1 classes" in svg and "<title>8 to 9: 2 classes" in svg


def test_bins_are_joined_until_there_are_few():
    tally = Tally(8)
    tally.add(np.array([40] * 3 + [300] * 5 + [500]))
    fine, coarse = tally.histogram(), tally.histogram(12)
    assert len(fine.bins) == 30 and coarse.total == fine.total == 9
    assert [low for low, *_ in coarse.bins] == pytest.approx([32 * 2 ** (n / 2) for n in range(8)])
    assert [number for *_, number in coarse.bins] == [3, 0, 0, 0, 0, 0, 5, 1]


def test_a_histogram_has_axes_and_bars_only_where_the_images_are():
    tally = Tally(8)
    tally.add(np.array([4, 9000]))
    tally.add(np.random.default_rng(0).lognormal(5.7, 0.3, 9998).astype(int))
    svg, caption = page.histogram(tally.histogram(), "side")
    assert 15 <= svg.count('class="bar"') <= 25 and re.search(
        r"Share of the images. 4 to 9,000; 0.\d+% are outside", caption
    )
    assert {"200", "600", "4%", "10%"} <= set(re.findall(r"<text[^>]*>([^<]+)</text>", svg))
    assert re.search(r"<title>279 to 304: [\d,]+ images \(\d+.\d%\)</title>", svg)
    same = Tally(8)
    same.add(np.full(9, 32))
    assert page.histogram(same.histogram(), "side") == ("", "32, of all images.")
    assert page.histogram(Tally(8).histogram(), "side") == ("", "")


@pytest.mark.parametrize("command", [(), ("build",), ("index",), ("verify",), ("info",)])
def test_help_answers_in_less_than_a_second(command):
    def spent() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime  # CPU seconds: the machine may be busy

    before = spent()
    done = subprocess.run(
        [sys.executable, "-m", "shards", *command, "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0 and "usage: python -m shards" in done.stdout
    assert spent() - before < 1


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["build", "none.tar", "--out", "x", "--workers", "0"], 2, "no source at none.tar"),
        (["build", "--out", "x", "--workers", "0"], 2, "no source given"),
        (["build", "a", "--out", "x", "--workers", "-1"], 2, "workers"),
        (["info", "nowhere"], 2, "no shard set at nowhere"),
        (["index", "nowhere", "--workers", "0"], 2, "no shards"),
    ],
)
def test_bad_requests_exit_with_2_and_say_what_to_do(arguments, status, says, capsys):
    assert main(arguments) == status
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["build"], ["build", "a"]])
def test_arguments_that_do_not_parse_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "--out" in capsys.readouterr().err


def test_settings_against_the_rules_and_unknown_commands_exit_with_2(capsys):
    assert main(["build", "a", "--out", "x", "--quality", "0"]) == 2
    assert "quality (0) must be from 1 to 100" in capsys.readouterr().err
    assert main(["pack"]) == 2
    assert "unknown command 'pack'; known: build, index, verify, info" in capsys.readouterr().err


def test_build_from_the_command_line_and_again(tmp_path, capsys):
    source = small_archive(tmp_path / "a.tar")
    command = ["build", str(source), "--out", str(tmp_path / "set"), "--workers", "0"]
    assert main([*command, "--resize-short", "32", "--val-per-class", "1"]) == 0
    first = capsys.readouterr().out
    assert "train: 21 images in 1 shards" in first and "0 of 24 files give no image" in first
    assert main([*command, "--resize-short", "32", "--val-per-class", "1"]) == 0
    assert capsys.readouterr().out == first
    assert main(command) == 2


@pytest.mark.parametrize("compress", [False, True])
def test_a_dry_run_is_about_right_and_writes_nothing(tmp_path, compress, capsys):
    source = small_archive(tmp_path / "a.tar", classes=5, images=40)
    if compress:
        import gzip

        data = gzip.compress(source.read_bytes())
        source = tmp_path / "a.tar.gz"
        source.write_bytes(data)
    config = BuildConfig(resize_short=32, shard_samples=20)
    told = estimate([str(source)], str(tmp_path / "set"), config)
    assert 180 <= told.images <= 230 and 9 <= told.shards <= 12
    before = sorted(tmp_path.rglob("*"))
    out = ["--out", str(tmp_path / "set"), "--dry-run"]
    assert main(["build", str(source), *out]) == 0
    assert "nothing was written" in capsys.readouterr().out
    assert sorted(tmp_path.rglob("*")) == before


def test_built_in_lists_relate_as_published():
    sets = {name: set(classes.class_list(name)) for name in classes.BUILT_IN}
    sizes = {"fall11": 21841, "goog": 21843, "winter21": 19167, "miil-fall11": 11221,
             "miil-winter21": 10450, "12k": 11821, "1k": 1000}  # fmt: skip
    assert {name: len(wnids) for name, wnids in sets.items()} == sizes
    assert sets["goog"] - sets["fall11"] == {"n03931044", "n09859684"}
    goog = classes.class_list("goog")
    assert (goog.index("n03931044"), goog.index("n09859684")) == (9205, 15027)
    assert sets["miil-winter21"] < sets["miil-fall11"] < sets["12k"] < sets["fall11"]
    assert sets["1k"] - sets["fall11"] == {"n04399382"}
    assert len(sets["1k"] - sets["miil-fall11"]) == 9 and len(sets["1k"] - sets["12k"]) == 7


def test_sets_of_classes_are_described():
    assert classes.described(classes.class_list("fall11")) == "fall11: 21,841 classes"
    others = classes.class_list("fall11")[:19167]
    assert classes.described(others) == "19,167 classes, all of them in fall11"
    assert classes.described(["n01440764"]) == "1 classes, all of them in 1k"
    assert classes.described(["cat", "dog"]) == "2 classes"


def test_mapping_between_sets():
    small, large = classes.class_list("1k"), classes.class_list("fall11")
    there = classes.mapping(small, large)
    assert there.count(-1) == 1 and small[there.index(-1)] == "n04399382"
    assert all(large[to] == small[at] for at, to in enumerate(there) if to >= 0)


@pytest.mark.parametrize(
    ("text", "message"), [("", "is empty"), ("n1\nn2\nn1\n", "n1 twice")]
)  # fmt: skip
def test_class_files_that_make_no_sense_are_refused(tmp_path, text, message):
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        classes.class_list(str(tmp_path / "list.txt"))


def test_an_unknown_class_list_names_the_known_ones():
    with pytest.raises(FileNotFoundError, match="fall11, goog, winter21"):
        classes.class_list("imagenet22k")


def test_every_class_has_a_name_and_a_way_to_the_root():
    for wnid in classes.class_list("goog"):
        assert wordnet.name(wnid) != wnid
        assert (
            wnid == "n00001740" or list(wordnet.ancestors(wnid))[-1:] or not wordnet.hypernyms(wnid)
        )
    assert wordnet.hypernyms("n01440764") == ("n01439121",)
    assert list(wordnet.ancestors("n01440764"))[-1] == "n00001740"
    assert wordnet.name("cat") == "cat" and wordnet.hypernyms("cat") == ()
    assert wordnet.name("n00000003") == "digit 3" and wordnet.hypernyms("n00000003") == ()


def test_parents_are_the_nearest_ancestors_in_the_set():
    given = ("n01440764", "n01439121", "n00001740", "cat")
    assert wordnet.parents(given) == [1, 2, -1, -1]


def test_warnings_damage_and_what_each_excluded_set_took_are_told(made, tmp_path):
    members = class_images(WNIDS[0], 8)
    cut = nested({WNIDS[0]: members, WNIDS[1]: class_images(WNIDS[1], 8)})[:-20_000]
    (tmp_path / "winter21_whole.tar").write_bytes(cut)
    config = BuildConfig(resize_short=32, exclude=(str(made),), allow_damaged_source=True)
    build([tmp_path / "winter21_whole.tar"], tmp_path / "set", config)
    told = describe(str(tmp_path / "set"))
    page.write(str(tmp_path / "page.html"), told, str(tmp_path / "set"))
    shown = " ".join(Page((tmp_path / "page.html").read_text()).words)
    for text in (str(told), shown):
        assert "winter21_whole.tar has 2 classes; the published winter21_whole has 19,167" in text
        assert "damaged: winter21_whole.tar: byte " in text
        assert "left out, same bytes as set:val" in text
        assert "of the images, by content hash (the sources have no val split)" in text
    assert "left out, same bytes as set:val: 2" in str(told)
