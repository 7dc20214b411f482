"""The page of a search: what it says and shows of trials made by hand, without a run."""

import base64
import dataclasses
import html
import io
import json
import math
import re
import shutil
import subprocess
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from test_support_page import Page

from pipeline.settings.presets import find_preset, read_preset
from pipeline.tracking.journal import write_record
from tune.answer import Answer
from tune.config import SearchConfig
from tune.dimension import Range
from tune.ladder import planned
from tune.page import BEST, PAGE, write_answer, write_page
from tune.prepare import make_plan
from tune.trial import DIVERGED, DONE, RUNNING, Outcome

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
RUNGS = ("24/64", "8/16", "3/4")


def loss(plan, sample, horizon, seed):
    """A valley whose lowest point moves with the length of the run; the noise is that of a run."""
    total = 1.0 - 0.1 * math.log(horizon)
    for place, (name, dimension) in enumerate(plan.space.dimensions.items()):
        if isinstance(dimension, Range):
            best = (0.55, 0.35)[place % 2] + (0.03, -0.03)[place % 2] * math.log(horizon)
            total += (dimension.share(sample[name]) - best) ** 2
        elif name in sample:
            total += 0.1 * dimension.options.index(sample[name])
    return total + 0.01 * np.random.default_rng([seed, *str(sample).encode()]).normal()


def ended(plan, trial, diverges=()):
    """The trial with its outcome; a rate near the end of its range diverges."""
    sample = plan.preset_sample() if trial.sample is None else trial.sample
    horizon, lr = plan.horizon(trial.rung), plan.space.dimensions.get("optim.lr")
    cost = {"images": int(horizon * 40 * 1437), "seconds": 3600 * horizon, "workers": 2}
    high = isinstance(lr, Range) and lr.share(sample["optim.lr"]) > 0.97
    if high or trial.name in diverges:
        outcome = Outcome(status=DIVERGED, reason="loss nan in step 7", **cost)
    else:
        value = loss(plan, sample, horizon, trial.seed)
        values = {"val/loss": value, "val/top1": 1 - value / 4}
        outcome = Outcome(status=DONE, values=values, **cost)
    return dataclasses.replace(trial, status=outcome.status, outcome=outcome)


def searched(folder, diverges=(), **settings):
    """The plan and the trials of a search that has ended, which took no time."""
    base = find_preset("demo").replace({"runs_dir": str(folder)})
    plan, trials = make_plan("demo", base, SearchConfig(**{"rungs": RUNGS, **settings})), []
    for _ in range(len(plan.rungs) + 1):
        done = len(trials)
        trials += [ended(plan, trial, diverges) for trial in planned(plan, trials)[done:]]
    return plan, trials


def write_journals(plan, trials):
    """Three training losses of each trial; one that has ended well begins far above the others."""
    for trial in trials:
        steps = plan.tuned(trial.sample, plan.horizon(trial.rung)).steps(plan.samples)
        folder = plan.dir / "trials" / trial.name
        folder.mkdir(parents=True)
        for step in (1, steps // 2, steps):
            value = (trial.value("val/loss") or 50.0) + 1 / step
            value += 40.0 if trial.name == "rung-1-05" and step == 1 else 0.0
            write_record(folder, {"kind": "train", "step": step, "train/loss": value})


@dataclasses.dataclass
class Shown:
    """A search, its answer and its page."""

    plan: object
    trials: list
    answer: object
    content: str

    @property
    def words(self):
        return " ".join(Page(self.content).words)

    def svg(self, name):
        """One chart."""
        found = re.search(rf'<svg id="{name}".*?</svg>', self.content, re.DOTALL)
        return ElementTree.fromstring(found[0])

    def marks(self, name, kind):
        """Elements of a chart with a CSS class."""
        return [each for each in self.svg(name).iter() if each.get("class") == kind]

    def titles(self, name, kind):
        """Hover texts of these elements."""
        return [t.text for each in self.marks(name, kind) for t in each.iter("title")]

    def texts(self, name):
        """Texts in a chart."""
        return [text.text for text in self.svg(name).iter("text")]


def shown(plan, trials):
    plan.dir.mkdir(parents=True, exist_ok=True)
    answer = write_answer(plan, trials, plan.dir)
    return Shown(plan, trials, answer, (plan.dir / PAGE).read_text())


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of a search over learning rate and warm-up, with journals of all but one trial."""
    plan, trials = searched(tmp_path_factory.mktemp("runs"))
    write_journals(plan, [trial for trial in trials if trial.name != "rung-2-03"])
    return shown(plan, trials)


def test_the_answer_comes_first_with_its_command_and_the_page_stands_alone(page):
    Page(page.content).assert_stands_alone()
    assert "http" not in page.content
    head, _, charts = page.content.partition("<svg")
    for sentence in page.answer.sentences():
        assert sentence in html.unescape(head)
    assert f"python -m pipeline train --preset-file {page.plan.dir / BEST}" in head
    assert "<script" not in charts


def test_the_preset_file_has_the_settings_of_the_answer(page):
    config = read_preset(page.plan.dir / BEST)
    assert not page.answer.keeps
    assert config.optim.lr == page.answer.carried["optim.lr"]
    assert config.optim.warmup == page.answer.carried["optim.warmup"]
    assert config.optim.warmup_unit == "fraction"


def test_the_map_has_every_trial_of_the_rungs_and_tells_how_it_ended(page):
    told = [text.split(";")[0] for text in page.titles("map", "trial")]
    trials = [t for t in page.trials if t.rung < 3 and t.sample]
    assert sorted(told) == sorted(f"{trial.name}: {trial.status}" for trial in trials)
    for use in (use for mark in page.marks("map", "trial") for use in mark.iter("use")):
        is_lost = "diverged" in use.find("title").text
        assert (
            is_lost == ("var(--bad)" in use.get("style")) == ("loss nan" in use.find("title").text)
        )
    assert {"trial of 1/64", "trial of 1/16", "trial of 1/4"} <= set(page.texts("map"))
    assert {"0.002", "5%", "optim.lr", "optim.warmup, share of the run"} <= set(page.texts("map"))


def test_the_map_marks_the_preset_and_both_optima_and_the_intervals_of_the_real_runs(page):
    marked = page.titles("map", "optimum")
    assert [text.split(":")[0] for text in marked] == [
        *("the preset", "best at 1/4", "best of the real run"),
    ]
    assert f"optim.lr {page.answer.carried['optim.lr']:.4g}" in marked[-1]
    bars = page.marks("map", "interval")
    assert page.titles("map", "interval") == [
        *("optim.lr: 90 % interval", "optim.warmup: 90 % interval"),
    ]
    for bar, (name, side) in zip(bars, (("optim.lr", 0), ("optim.warmup", 1)), strict=True):
        ends = [page_share(point)[side] for point in points_of(bar)]
        values = [page.plan.space.dimensions[name].at(share) for share in sorted(ends)]
        assert values == pytest.approx(page.answer.surface.interval(name, 1.0), rel=0.02)


def points_of(element):
    """Points of the paths in an element of an SVG."""
    paths = [path.get("d") for path in element.iter("path")]
    numbers = [float(text) for path in paths for text in re.findall(r"-?\d+\.?\d*", path)]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def page_share(point):
    """Place on the axes of the map of a point of its SVG."""
    x, y = point
    return (x - 66) / (520 - 66 - 16), (480 - 110 - y) / (480 - 110 - 14)


def test_the_lightest_place_is_the_best_of_the_real_run(page):
    (image,) = page.marks("map", "surface")
    data = base64.b64decode(image.get("href").partition(",")[2])
    light = np.asarray(Image.open(io.BytesIO(data)).convert("L"), dtype=float)
    row, column = np.unravel_index(light.argmax(), light.shape)
    ranges = page.plan.space.dimensions
    best = [dimension.share(page.answer.carried[name]) for name, dimension in ranges.items()]
    wide, _, _, high, left, top = map(float, re.findall(r"-?[\d.]+", image.get("transform")))
    point = left + wide * (column + 0.5), top + high * (row + 0.5)
    assert page_share(point) == pytest.approx(best, abs=0.05)


def test_the_line_on_the_map_is_where_settings_are_worse_by_the_noise(page):
    (edge,) = page.marks("map", "region")
    space, surface = page.plan.space, page.answer.surface
    samples = [space.at(page_share(point)) for point in points_of(edge)]
    assert len(samples) > 20
    assert surface.excess(samples, 1.0) == pytest.approx(surface.noise, rel=0.1)


def test_curves_are_of_every_trial_with_a_journal(page):
    for number, count in (("1", 24), ("2", 7), ("3", 3), ("4", 8)):
        assert len(page.marks(f"curves-{number}", "trial")) == count
    assert len(page.marks("curves-1", "end")) == 1  # the trial that diverged
    told = page.titles("curves-1", "trial")
    best = min((t for t in page.trials if t.rung == 0), key=lambda t: t.value("val/loss") or 9)
    assert told[-1].startswith(best.name)  # on top
    assert "Rung 1, at 1/64" in page.words and "Pairs, at 1/4" in page.words
    # neither a run that diverged nor a first step sets the scale
    assert not {"10", "20", "30", "40", "50"} & set(page.texts("curves-1"))


def test_the_optimum_is_shown_over_the_length_of_the_run(page):
    for name in ("optim.lr", "optim.warmup"):
        texts = page.texts(f"optimum-{name}")
        assert {"1/64", "1/16", "1/4", "1/1"} <= set(texts)
        assert len(page.marks(f"optimum-{name}", "best")) == 3
        (band,) = page.marks(f"optimum-{name}", "interval")
        (line,) = page.marks(f"optimum-{name}", "optimum")
        heights = [y for _, y in points_of(line)]
        # the rate rises and the warm-up falls with the length, as in `loss`
        assert (heights[0] > heights[-1]) == (name == "optim.lr")
        assert len(points_of(band)) > 2 * len(heights)


def test_pairs_stand_beside_their_mean_and_its_interval(page):
    gain = page.answer.gain
    assert len(page.marks("pairs", "pair")) == 4
    assert [text for text in page.titles("pairs", "mean")] == [str(gain)]
    assert {"pair 1", "pair 4", "mean"} <= set(page.texts("pairs"))
    lines = [points_of(line) for line in page.marks("pairs", "pair")]
    zero = {start for (start, _), _ in lines}
    assert len(zero) == 1
    ends = [end - start for (start, _), (end, _) in lines]
    assert np.corrcoef(ends, gain.differences)[0, 1] == pytest.approx(1)
    ((low, _), (high, _)) = points_of(page.marks("pairs", "interval")[0])
    scale = ends[0] / gain.differences[0]
    assert [low - zero.pop(), high - low] == pytest.approx(
        [gain.interval[0] * scale, (gain.interval[1] - gain.interval[0]) * scale], rel=0.01
    )


def test_the_table_and_the_cost_are_on_the_page(page):
    parts = Page(page.content).words
    assert all({*row} - {""} <= {*parts} for row in page.answer.table())
    words = " ".join(" ".join(parts).split())
    for status, number in page.answer.counts().items():
        assert f"{number} trials {status}" in words
    # 24 / 64 + 8 / 16 + 3 / 4 and 8 runs of a quarter, of which each took a quarter of an hour
    assert "3.6 real runs, of 3.6 planned" in words
    assert "7h15m of workers" in words


def test_equal_input_gives_equal_bytes(page, tmp_path):
    write_page(Answer(page.plan, page.trials), tmp_path / "again.html")
    again = (tmp_path / "again.html").read_text()
    assert again.replace(str(tmp_path), str(page.plan.dir)) == page.content


def test_of_choices_alone_each_option_is_a_row(tmp_path):
    page = shown(*searched(tmp_path, space="augment"))
    texts = page.texts("map")
    rows = [f"{n} {option}" for n, d in page.plan.space.dimensions.items() for option in d.options]
    assert [text for text in texts if text in rows] == rows[::-1]
    trials = [t for t in page.trials if t.rung < 3 and t.sample]
    assert len(page.titles("map", "trial")) == 3 * len(trials)  # one in the row of each choice
    assert not page.marks("map", "interval") and "optimum-" not in page.content
    (bars,) = page.marks("map", "surface")
    places = [float(bar.get("x")) for bar in bars.iter("use")]
    best, choices = page.answer.carried, page.plan.space.dimensions.items()
    samples = [{**best, name: option} for name, choice in choices for option in choice.options]
    assert np.corrcoef(places, page.answer.surface.excess(samples, 1.0))[0, 1] > 0.999


def test_over_one_setting_the_map_shows_how_far_each_trial_is_behind(tmp_path):
    page = shown(*searched(tmp_path, set=("optim.warmup=0.1",)))
    assert {"optim.lr", "behind the best", "0"} <= set(page.texts("map"))
    (line,) = page.marks("map", "surface")
    lowest = max(points_of(line), key=lambda point: point[1])  # downwards
    best = page.plan.space.dimensions["optim.lr"].share(page.answer.carried["optim.lr"])
    assert page_share(lowest)[0] == pytest.approx(best, abs=0.05)
    assert page.titles("map", "interval") == ["optim.lr: 90 % interval"]


def test_the_two_settings_of_the_map_are_the_rate_and_the_warm_up(tmp_path):
    changes = ("optim.weight_decay=loguniform(0.01,0.3)", "optim.name=choice(adamw,sgd)")
    (tmp_path / "mine.json").write_text(json.dumps(dict(one.split("=") for one in changes)))
    page = shown(*searched(tmp_path, space=str(tmp_path / "mine.json")))
    assert {"optim.weight_decay", "optim.name", "adamw", "sgd"} <= set(page.texts("map"))
    assert page.marks("map", "surface")[0].tag == "image"
    page = shown(*searched(tmp_path, space="warmup-lr-decay"))
    assert "optim.weight_decay" not in page.texts("map")
    assert len(page.marks("optimum-optim.weight_decay", "best")) == 3


def test_more_is_better_is_better_to_the_right_too(tmp_path):
    page = shown(*searched(tmp_path, objective="val/top1"))
    for line, gained in zip(page.marks("pairs", "pair"), page.answer.gain.differences, strict=True):
        (zero, _), (end, _) = points_of(line)
        assert (end > zero) == (gained > 0)
    assert page.answer.gain.mean > 0
    told = page.titles("curves-1", "trial") if "curves-1" in page.content else []
    assert told == []  # without journals there are no curves
    assert "Curves of each rung" not in page.words


def test_without_a_pair_to_compare_the_preset_stays_and_the_page_says_so(tmp_path):
    lost = [f"rung-4-{place:02d}" for place in range(1, 8, 2)]
    page = shown(*searched(tmp_path, diverges=lost))
    assert page.answer.gain is None
    assert "There is no pair to compare." in page.words
    assert "Keep the preset's settings" in page.words and '<svg id="pairs"' not in page.content
    content = json.loads((page.plan.dir / BEST).read_text())
    assert content["settings"]["optim.lr"] == page.plan.run.optim.lr


def test_one_pair_has_no_interval(tmp_path):
    page = shown(*searched(tmp_path, seeds=2, diverges=["rung-4-03"]))
    assert len(page.marks("pairs", "pair")) == len(page.marks("pairs", "mean")) == 1
    assert not page.marks("pairs", "interval")


def test_trials_that_have_not_ended_are_left_out(tmp_path):
    plan, trials = searched(tmp_path)
    last = dataclasses.replace(trials[5], status=RUNNING, outcome=None)
    page = shown(plan, [*trials[:5], last, *trials[6:]])
    assert last.name not in page.content


def test_a_search_in_a_store_names_the_copy_of_this_machine_and_no_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    page = shown(*searched("s3://KEY:S3CR3T@bucket/runs"))
    assert f"--preset-file {page.plan.dir / BEST}" in page.words
    assert page.plan.dir.is_relative_to(tmp_path)
    assert "S3CR3T" not in page.content + (page.plan.dir / BEST).read_text()


@pytest.mark.skipif(not CHROMIUM, reason="no chromium")
def test_the_page_shows_the_surface_and_what_was_found_in_a_browser(page, tmp_path):
    picture = tmp_path / "page.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--hide-scrollbars"]
    flags += [f"--screenshot={picture}", "--window-size=1200,1500"]
    address = (page.plan.dir / PAGE).as_uri()
    subprocess.run([CHROMIUM, *flags, address], check=True, capture_output=True, timeout=120)
    image = Image.open(picture).convert("RGB")
    colours = [colour for _, colour in image.getcolors(maxcolors=1 << 24)]
    # the colours of the map's surface, and the marker of what was found
    assert len({c for c in colours if max(c) - min(c) > 60}) > 100
    assert any(abs(r - 219) + abs(g - 39) + abs(b - 119) < 12 for r, g, b in colours)
