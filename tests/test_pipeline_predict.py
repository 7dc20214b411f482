"""Classifying image files: probabilities by hand, tables, files that are no images, clusters."""

import csv
import logging
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3_server
import torch
from checkpoints import write
from PIL import Image
from pyarrow import fs as pafs

from pipeline.__main__ import main
from pipeline.commands.launch import check_places, parse
from pipeline.data.reader import View
from pipeline.evaluation.config import CENTER
from pipeline.evaluation.model import EvalModel
from pipeline.predict import files, table, threads
from pipeline.predict.classifier import Guesses
from pipeline.predict.files import ImageFile
from pipeline.settings.presets import find_preset
from shards.dataset.classes import class_list
from vit.batch import normalise
from vit.images import decode
from vit.model import ViT
from vit.weights import save_weights

CLASSES = class_list("1k")[:10]
# the first three of ImageNet's classes
NAMES = {
    "n01440764": "tench, Tinca tinca",
    "n01443537": "goldfish, Carassius auratus",
    "n01484850": "great white shark, white shark, man-eater, man-eating shark, "
    "Carcharodon carcharias",
}
SMALL = {
    "model.image_size": 32,
    "model.depth": 1,
    "model.width": 32,
    "model.mlp_width": 32,
    "model.num_classes": 10,
}


def checkpoint_in(folder: Path, **settings) -> Path:
    """The folder of a run with a small model that tells images apart."""
    config = find_preset("demo").replace({**SMALL, **settings})
    torch.manual_seed(0)
    model = ViT(config.model)
    torch.nn.init.normal_(model.head.weight, std=2.0)
    classes = CLASSES[: config.model.num_classes]
    about = {"state": {}, "config": config, "classes": classes}
    write(folder / "checkpoints", 10, model=model.state_dict(), **about)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return checkpoint_in(tmp_path_factory.mktemp("runs") / "run")


def picture(number: int, width: int = 90, height: int = 60) -> Image.Image:
    draw = np.random.default_rng(number)
    coarse = draw.integers(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path):
    """Seven images of several formats in folders, an image that is broken, and other files."""
    place = tmp_path / "images"
    (place / "b" / "deep").mkdir(parents=True)
    for number, name in enumerate(["a.jpg", "b/1.PNG", "b/2.webp", "b/deep/3.JPEG", "c.bmp"]):
        picture(number).save(place / name)
    (place / "b" / "broken.jpg").write_bytes((place / "a.jpg").read_bytes()[:400])
    (place / "d.jpeg").write_bytes(b"no image")
    (place / "labels.txt").write_text("not an image by its name")
    return place


IN_ORDER = ["a.jpg", "b/1.PNG", "b/2.webp", "b/broken.jpg", "b/deep/3.JPEG", "c.bmp", "d.jpeg"]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def said(caplog) -> list[str]:
    """The lines on the console."""
    return "\n".join(caplog.messages).splitlines()


# --- what is computed ---


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_probabilities_are_those_worked_out_by_hand_on_the_pixels(loss, tmp_path):
    images = {"images.eval_interpolation": "bicubic", "images.crop_pct": 0.8}
    factors = {"images.mean": [0.4, 0.5, 0.6], "images.std": [0.2, 0.3, 0.4]}
    run = checkpoint_in(tmp_path / "run", **{"loss.name": loss}, **images, **factors)
    picture(3).save(tmp_path / "photo.png")
    arguments = ["predict", str(run), str(tmp_path / "photo.png"), "--top", "10"]
    assert main([*arguments, "--out", str(tmp_path / "out.csv")]) == 0
    # 90 x 60 pixels -> 60 x 40, of which the middle 32 x 32
    small = picture(3).resize((60, 40), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(small.crop((14, 4, 46, 36)))).double() / 255
    pixels = (pixels - torch.tensor([0.4, 0.5, 0.6])) / torch.tensor([0.2, 0.3, 0.4])
    eval_model = EvalModel.open(run)
    with torch.no_grad():
        model = eval_model.load(eval_model.model)
        logits = model(pixels.permute(2, 0, 1)[None].float())[0].double()
    shares = logits.exp() / logits.exp().sum() if loss == "softmax" else 1 / (1 + (-logits).exp())
    order = logits.argsort(descending=True).tolist()
    (row,) = rows_of(tmp_path / "out.csv")
    assert [row[f"class{place}"] for place in range(1, 11)] == [CLASSES[n] for n in order]
    found = [float(row[f"p{place}"]) for place in range(1, 11)]
    np.testing.assert_allclose(found, shares[order], rtol=1e-4)
    assert row["error"] == ""
    for place in range(1, 11):
        wnid = row[f"class{place}"]
        assert row[f"name{place}"] == NAMES.get(wnid, row[f"name{place}"]) != wnid


def test_an_image_is_prepared_as_in_an_evaluation(run, folder, tmp_path):
    assert main(["predict", str(run), str(folder / "a.jpg"), "--out", f"{tmp_path}/o.csv"]) == 0
    eval_model = EvalModel.open(run)
    view = View(images=eval_model.images, size=32, protocols=(CENTER,))
    pixels = torch.from_numpy(view(decode((folder / "a.jpg").read_bytes()), 0))
    with torch.no_grad():
        logits = eval_model.load(eval_model.model)(normalise(pixels, eval_model.images))[0]
    (row,) = rows_of(tmp_path / "o.csv")
    assert row["class1"] == CLASSES[logits.argmax()]
    assert float(row["p1"]) == pytest.approx(logits.softmax(0).max().item(), rel=1e-4)


def test_one_image_is_shown_with_its_classes(run, folder, caplog):
    assert main(["predict", str(run), str(folder / "a.jpg"), "--top", "2"]) == 0
    first, *two, last = said(caplog)
    assert first == str(folder / "a.jpg") and last == "classified  1 of 1 images"
    for line in two:
        share, wnid, name = line.split(maxsplit=2)
        assert 0 < float(share) < 1 and wnid in CLASSES and name == NAMES.get(wnid, name)
    assert len(two) == 2


# --- tables ---


def test_a_folder_gives_a_table_in_the_order_of_the_names(run, folder, tmp_path, caplog):
    assert main(["predict", str(run), str(folder), "--out", str(tmp_path / "out.csv")]) == 0
    rows = rows_of(tmp_path / "out.csv")
    assert [row["path"] for row in rows] == [str(folder / name) for name in IN_ORDER]
    assert list(rows[0])[:4] == ["path", "class1", "name1", "p1"]
    assert list(rows[0])[-2:] == ["p5", "error"]
    for row in rows:
        shares = [float(row[f"p{place}"] or "nan") for place in range(1, 6)]
        if Path(row["path"]).name in ("broken.jpg", "d.jpeg"):
            assert "broken JPEG" in row["error"] or "no readable image" in row["error"]
            assert row["class1"] == "" and np.isnan(shares).all()
        else:
            assert row["error"] == "" and shares == sorted(shares, reverse=True)
    assert said(caplog)[-3:] == [
        f"table       {tmp_path}/out.csv",
        "classified  5 of 7 images",
        f"not read    {folder}/b/broken.jpg, {folder}/d.jpeg",
    ]


def test_csv_and_parquet_have_the_same_rows(run, folder, tmp_path):
    for name in ("out.csv", "out.parquet"):
        assert main(["predict", str(run), str(folder), "--out", str(tmp_path / name)]) == 0
    found = pq.read_table(tmp_path / "out.parquet")
    assert found.schema.field("p1").type == pa.float32()
    for row, same in zip(found.to_pylist(), rows_of(tmp_path / "out.csv"), strict=True):
        for column, value in row.items():
            if isinstance(value, float):
                assert float(same[column]) == pytest.approx(value, rel=1e-6)
            else:
                assert same[column] == (value or "")


def test_a_head_with_few_classes_gives_all_of_them(tmp_path, folder):
    run = checkpoint_in(tmp_path / "run", **{"model.num_classes": 3})
    assert main(["predict", str(run), str(folder / "a.jpg"), "--out", f"{tmp_path}/o.csv"]) == 0
    (row,) = rows_of(tmp_path / "o.csv")
    assert "class3" in row and "class4" not in row
    assert {row[f"class{n}"]: row[f"name{n}"] for n in (1, 2, 3)} == NAMES
    assert sum(float(row[f"p{n}"]) for n in (1, 2, 3)) == pytest.approx(1, abs=1e-5)


def test_rows_reach_the_disk_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "ROWS", 100)
    rows = table.Table(CLASSES, 2)
    with table.written(str(tmp_path / "out.parquet"), rows.schema) as add:
        for first in range(0, 1000, 32):
            count = min(32, 1000 - first)
            found = [ImageFile("/x", f"/x/{first + place}.jpg") for place in range(count)]
            classes = np.tile(np.arange(2), (count, 1))
            guesses = Guesses(classes, np.full((count, 2), 0.5, np.float32), [""] * count)
            add(rows.rows(found, guesses))
    found = pq.ParquetFile(tmp_path / "out.parquet")
    groups = [found.metadata.row_group(n).num_rows for n in range(found.num_row_groups)]
    assert sum(groups) == 1000 and max(groups) < 200
    assert found.read()["path"].to_pylist() == [f"/x/{n}.jpg" for n in range(1000)]


def test_a_table_that_is_not_finished_is_not_there(tmp_path):
    rows = table.Table(CLASSES, 2)
    with pytest.raises(KeyboardInterrupt), table.written(f"{tmp_path}/o.csv", rows.schema):
        assert len(list(tmp_path.iterdir())) == 1  # aside
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


# --- what cannot be read ---


def test_only_input_without_any_readable_image_is_bad(run, folder, caplog):
    assert main(["predict", str(run), str(folder / "d.jpeg")]) == 2
    _, reason, *rest = said(caplog)
    assert reason.startswith("  cannot be read: no readable image in 8 bytes")
    assert rest == ["classified  0 of 1 images", f"not read    {folder}/d.jpeg"]
    assert main(["predict", str(run), str(folder / "d.jpeg"), str(folder / "a.jpg")]) == 0


def test_of_many_unreadable_images_the_first_are_named(run, tmp_path, caplog):
    for number in range(40):
        (tmp_path / f"{number:02d}.jpg").write_bytes(b"none")
    picture(0).save(tmp_path / "good.png")
    assert main(["predict", str(run), str(tmp_path), "--out", f"{tmp_path}/out.csv"]) == 0
    last = said(caplog)[-1]
    assert last.endswith("04.jpg and 35 more") and last.startswith("not read    ")


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 3000), (3000, 1), (2, 40_000)])
def test_images_of_any_shape_are_classified_or_named(width, height, tmp_path):
    Image.new("RGB", (width, height), (200, 30, 60)).save(tmp_path / "odd.png")
    picture(0).save(tmp_path / "good.png")
    for interpolation in ("area", "linear", "bilinear", "bicubic"):
        odd = checkpoint_in(
            tmp_path / interpolation, **{"images.eval_interpolation": interpolation}
        )
        out = tmp_path / "out.csv"
        images = [str(tmp_path / "good.png"), str(tmp_path / "odd.png")]
        assert main(["predict", str(odd), *images, "--out", str(out)]) == 0
        good, odd_row = rows_of(out)
        assert good["class1"] and (odd_row["class1"] or odd_row["error"])


def test_an_image_that_would_fill_the_memory_is_named(tmp_path, run):
    # 1 x 60,000 pixels would be resized to 36 x 2,160,000 and more
    Image.new("RGB", (1, 200_000)).save(tmp_path / "long.png")
    picture(0).save(tmp_path / "good.png")
    assert main(["predict", str(run), str(tmp_path), "--out", f"{tmp_path}/out.csv"]) == 0
    assert "more than 178,956,970" in rows_of(tmp_path / "out.csv")[1]["error"]


# --- what is refused ---


def refused(capsys, *arguments: object) -> str:
    """The message about arguments that end with status 2."""
    assert main(["predict", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def test_bad_input_is_refused_before_anything_starts(run, folder, tmp_path, capsys):
    image, empty = folder / "a.jpg", tmp_path / "empty"
    empty.mkdir()
    message = refused(capsys, run, image, folder / "none.jpg", "--out", tmp_path / "out.csv")
    assert f"there is no file or folder {folder}/none.jpg" in message
    assert f"no image in {empty}" in refused(capsys, run, empty)
    assert "--top (0) must be at least 1" in refused(capsys, run, image, "--top", 0)
    message = refused(capsys, run, image, "--out", tmp_path / "out.json")
    assert f"--out {tmp_path}/out.json must end with .csv or .parquet" in message
    message = refused(capsys, run, image, "--out", tmp_path / "not" / "out.csv")
    assert f"there is no folder {tmp_path}/not" in message
    assert "none is not there" in refused(capsys, tmp_path / "none", image)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "images"]


def test_predict_without_images_names_what_is_missing(run, capsys):
    assert "at least one IMAGE" in refused(capsys, run)


def test_a_head_without_a_list_of_classes_needs_one(tmp_path, folder, capsys):
    weights = tmp_path / "weights.safetensors"
    config = find_preset("demo").replace(SMALL).model
    save_weights(weights, ViT(config))
    message = refused(capsys, weights, folder / "a.jpg")
    assert "head of 10 classes and does not list them; give --classes: fall11" in message
    assert "or a file of WordNet ids" in message and ", or data" not in message
    message = refused(capsys, weights, folder / "a.jpg", "--classes", "data")
    assert "--classes data needs the data of an evaluation" in message
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    options = ["--classes", str(tmp_path / "classes.txt"), "--out", str(tmp_path / "out.csv")]
    assert main(["predict", str(weights), str(folder / "a.jpg"), *options]) == 0
    assert rows_of(tmp_path / "out.csv")[0]["class1"] in CLASSES


def test_a_model_without_a_head_is_refused(tmp_path, folder, capsys):
    config = find_preset("demo").replace(SMALL).model
    save_weights(tmp_path / "body.safetensors", ViT(config), head="drop")
    message = refused(capsys, tmp_path / "body.safetensors", folder / "a.jpg")
    assert "has no head" in message


def test_an_image_is_not_taken_for_a_checkpoint(folder, capsys):
    assert "a.jpg" in refused(capsys, folder / "a.jpg", folder / "a.jpg")


# --- where images are ---


def test_images_of_a_store_are_read_from_there(run, folder, tmp_path, monkeypatch, capsys):
    with s3_server.serving("bucket") as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        files.file_system.cache_clear()
        pafs.copy_files(str(folder), "s3://bucket/images")
        out = "s3://key:secret@bucket/out.csv"
        assert main(["predict", str(run), "s3://key:secret@bucket/images", "--out", out]) == 0
        pafs.copy_files("s3://bucket/out.csv", str(tmp_path / "stored.csv"))
        capsys.readouterr()
        assert main(["predict", str(run), "s3://bucket/images/none.jpg"]) == 2
        assert "there is no file or folder s3://bucket/images/none" in capsys.readouterr().err
    assert main(["predict", str(run), str(folder), "--out", str(tmp_path / "out.csv")]) == 0
    stored, local = rows_of(tmp_path / "stored.csv"), rows_of(tmp_path / "out.csv")
    assert [row["path"] for row in stored] == [f"s3://bucket/images/{name}" for name in IN_ORDER]
    for row, same in zip(stored, local, strict=True):
        assert {**row, "path": ""} == {**same, "path": ""}


def test_a_folder_is_listed_while_its_images_are_read(tmp_path, monkeypatch):
    for name in ("a/1.jpg", "a/2.jpg", "b/3.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    listed = []
    listing = files.store.listing

    def seen(system, folder):
        listed.append(Path(folder).name)
        return listing(system, folder)

    monkeypatch.setattr(files.store, "listing", seen)
    found = files.walk([str(tmp_path)])
    assert [Path(next(found).path).name for _ in range(2)] == ["1.jpg", "2.jpg"]
    assert listed == [tmp_path.name, "a"]
    assert Path(next(found).path).name == "3.jpg" and listed[-1] == "b"


# --- threads ---


def test_answers_come_in_order_and_work_is_ahead_by_a_bound():
    taken, most = 0, 0
    lock, running = threading.Lock(), 0

    def items():
        nonlocal taken
        for number in range(200):
            taken += 1
            yield number

    def work(number):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.002 * (number % 3))
        with lock:
            running -= 1
        return -number

    for place, (number, answer) in enumerate(threads.ordered(work, items(), 4)):
        assert (number, answer) == (place, -place)
        assert taken <= place + 1 + threads.AHEAD * 4
    assert taken == 200 and 1 < most <= 4


def test_an_error_ends_the_work():
    begun = []

    def work(number):
        begun.append(number)
        if number == 3:
            raise RuntimeError("the GPU is full")
        return number

    with pytest.raises(RuntimeError, match="the GPU is full"):
        list(threads.ordered(work, iter(range(10_000)), 2))
    assert len(begun) < 20


def test_batches_are_whole_but_for_the_last():
    assert list(threads.batches(range(7), 3)) == [[0, 1, 2], [3, 4, 5], [6]]
    assert list(threads.batches([], 3)) == []


# --- clusters ---


def test_a_gpu_or_without_any_a_node_has_its_share_of_the_cores():
    from pipeline.predict.cluster import Share, shares

    gpus, cpus = {"CPU": 26.0, "GPU": 8.0}, {"CPU": 16.0}
    assert (
        shares({"a": gpus, "b": cpus, "head": {}}, [], 10**6)
        == [Share(node="a", threads=3, gpus=1)] * 8
    )
    assert shares({"a": cpus, "b": {"CPU": 4.0}}, [], 1) == [
        Share(node="a", threads=16, gpus=0),
        Share(node="b", threads=4, gpus=0),
    ]
    with pytest.raises(ValueError, match="no node of the cluster has GPUs and CPUs"):
        shares({"a": {"GPU": 1.0}}, [], 1)


def test_nodes_that_can_be_started_have_shares_as_far_as_there_are_images():
    from pipeline.cluster.autoscaler import NodeType
    from pipeline.predict.cluster import Share, shares

    gpus, cpus = {"CPU": 26.0, "GPU": 8.0}, {"CPU": 16.0}
    types = [NodeType(resources=cpus, most=1), NodeType(resources=gpus, most=4)]
    coming = Share(node=None, threads=3, gpus=1)
    assert shares({"head": cpus}, types, 10**6) == [coming] * 32
    here = Share(node="a", threads=3, gpus=1)
    assert shares({"head": cpus, "a": gpus}, types, 10**6) == [here] * 8 + [coming] * 24
    assert shares({"head": cpus, "a": gpus}, types, 10) == [here] * 8
    assert shares({"head": cpus}, types, 2 * coming.chunk + 1) == [coming] * 3
    assert shares({"head": cpus}, types, 1) == [coming]
    # without GPUs the nodes themselves
    types = [NodeType(resources=cpus, most=3), NodeType(resources={}, most=2)]
    here, coming = (Share(node=node, threads=16, gpus=0) for node in ("head", None))
    assert shares({"head": cpus}, types, 10**6) == [here, coming, coming]


@pytest.mark.ray
def test_a_cluster_gives_the_same_table(ray_cluster, run, folder, tmp_path, monkeypatch):
    for number in range(60):
        picture(number + 10).save(folder / f"more-{number:02d}.jpg")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert main(["predict", str(run), str(folder), "--out", str(tmp_path / "here.csv")]) == 0
    monkeypatch.setenv("RAY_ADDRESS", ray_cluster.get_runtime_context().gcs_address)
    assert main(["predict", str(run), str(folder), "--out", str(tmp_path / "there.csv")]) == 0
    here, there = (rows_of(tmp_path / name) for name in ("here.csv", "there.csv"))
    assert len(here) == 67
    for row, same in zip(there, here, strict=True):
        for column, value in row.items():
            if column.startswith("p") and column != "path" and value:
                assert float(value) == pytest.approx(float(same[column]), rel=1e-4)
            else:
                assert value == same[column]


@pytest.mark.ray
def test_a_lost_worker_leaves_its_images_to_the_others(ray_cluster, run, folder, caplog):
    from pipeline.predict import cluster

    for number in range(40):
        picture(number + 10).save(folder / f"more-{number:02d}.jpg")
    eval_model = EvalModel.open(run)
    weights = ray_cluster.put(eval_model.load(eval_model.model).state_dict())
    share = cluster.Share(node=None, threads=1, gpus=0)
    made = [cluster.actor(share, eval_model.evaluation(), weights, 3) for _ in range(2)]
    workers = cluster.Workers(made)
    found, wanted = [], list(files.walk([str(folder)]))
    caplog.set_level(logging.WARNING)
    for batch, guesses in threads.ordered(workers, threads.batches(wanted, 4), 2):
        if not found:
            ray_cluster.kill(made[0])
        found += batch
        assert len(guesses.faults) == len(batch)
    assert found == wanted
    assert "a worker is lost, 1 are left" in caplog.text
    ray_cluster.kill(made[1])
    with pytest.raises(RuntimeError, match="all workers are lost"):
        workers(wanted[:2])
    workers.close()


@pytest.mark.ray
def test_an_error_does_not_wait_for_a_worker_that_never_starts(ray_cluster, run, folder):
    from pipeline.predict import cluster

    eval_model = EvalModel.open(run)
    weights = ray_cluster.put(eval_model.load(eval_model.model).state_dict())
    share = cluster.Share(node=None, threads=1, gpus=0)
    other = cluster.Share(node=None, threads=1, gpus=1)  # there is no GPU
    made = [cluster.actor(each, eval_model.evaluation(), weights, 3) for each in (share, other)]
    workers = cluster.Workers(made, [str(folder)])
    wanted = list(files.walk([str(folder)]))
    found = threads.ordered(workers, threads.batches([*wanted, None], 1), 4)
    with pytest.raises(AttributeError):  # the last is no file
        list(found)
    workers.close()
    assert not [each for each in threading.enumerate() if "_start" in each.name]


@pytest.mark.ray
def test_a_worker_that_does_not_see_the_images_gets_none(ray_cluster, run, folder, caplog):
    from pipeline.predict import cluster

    eval_model = EvalModel.open(run)
    weights = ray_cluster.put(eval_model.load(eval_model.model).state_dict())
    share = cluster.Share(node=None, threads=1, gpus=0)
    made = [cluster.actor(share, eval_model.evaluation(), weights, 3)]
    caplog.set_level(logging.WARNING)
    workers = cluster.Workers(made, [str(folder), f"{folder}/elsewhere"])
    with pytest.raises(RuntimeError, match="all workers are lost"):
        workers(list(files.walk([str(folder)])))
    assert f"a worker is lost, 0 are left: {folder}/elsewhere is not seen by node" in caplog.text
    workers.close()


def test_what_a_node_does_not_see_is_named(tmp_path):
    from pipeline.predict.cluster import unseen

    (fault,) = unseen([str(tmp_path), str(tmp_path / "none")], "h2 (10.0.0.2)")
    assert f"{tmp_path}/none is not seen by node h2 (10.0.0.2): give a folder" in fault


def test_a_job_on_a_cluster_takes_places_that_it_sees():
    words = ["predict", "s3://bucket/runs/b16", "s3://bucket/images", "--out", "s3://bucket/o.csv"]
    check_places(parse(words))
    check_places(parse(words[:3]))
    with pytest.raises(ValueError, match=r"images \(photos\) is relative to this machine"):
        check_places(parse(["predict", "s3://bucket/runs/b16", "photos"]))
