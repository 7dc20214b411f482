"""A run in a store: another machine continues it from there, and what was lost is no loss."""

import pytest
import s3_server
from checkpoints import write

from pipeline.checkpoint.run_folder import RunFolder, fetched_model, fetched_run
from pipeline.tracking import journal
from shards.dataset import store


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A function that goes to a machine, with its own disk."""

    def go(name: str) -> RunFolder:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        run = RunFolder.of((tmp_path / "store").as_uri(), "run")
        run.path.mkdir(parents=True, exist_ok=True)
        return run

    return go


def test_another_machine_continues_the_files_of_the_store(machine, tmp_path):
    run = machine("one")
    (run.path / "metrics.jsonl").write_text("1\n")
    (run.path / "evaluations/ten").mkdir(parents=True)
    (run.path / "evaluations/ten/result.json").write_text("{}")
    run.push("metrics.jsonl", "evaluations")
    assert (tmp_path / "store/run/metrics.jsonl").read_text() == "1\n"
    other = machine("two")
    other.pull()
    assert (other.path / "metrics.jsonl").read_text() == "1\n"
    assert (other.path / "evaluations/ten/result.json").read_text() == "{}"


def test_a_copy_that_goes_on_where_the_store_ends_is_kept(machine):
    run = machine("one")
    (run.path / "metrics.jsonl").write_text("1\n")
    run.push("metrics.jsonl")
    (run.path / "metrics.jsonl").write_text("1\n2\n")
    (run.path / "mlflow.json").write_text("{}")
    run.pull()
    assert (run.path / "metrics.jsonl").read_text() == "1\n2\n"
    assert (run.path / "mlflow.json").exists()


def test_what_servers_have_refused_of_a_copy_does_not_make_it_one_of_another_past(machine):
    run = machine("one")
    for name in (journal.RECORDS, journal.EVENTS, journal.REFUSED):
        (run.path / name).write_text("1\n")
        run.push(name)
    (run.path / journal.RECORDS).write_text("1\n2\n")
    (run.path / journal.REFUSED).write_text("of another server\n")
    run.pull()
    assert (run.path / journal.RECORDS).read_text() == "1\n2\n"
    assert (run.path / journal.REFUSED).read_text() == "of another server\n"
    (run.path / journal.EVENTS).write_text("2\n")
    run.pull()
    assert (run.path / journal.RECORDS).read_text() == "1\n"


def test_a_copy_of_another_past_is_replaced(machine):
    run = machine("one")
    (run.path / "metrics.jsonl").write_text("1\n2\n")
    (run.path / "mlflow.json").write_text("{}")
    (run.path / "run.lock").touch()
    (run.path / "checkpoints/.step-000000005.tmp").mkdir(parents=True)  # of a worker
    (run.path / "models/step-000000005").mkdir(parents=True)  # compared by its digest
    other = machine("two")
    (other.path / "metrics.jsonl").write_text("1\n3\n")
    other.push("metrics.jsonl")
    run = machine("one")
    run.pull()
    assert (run.path / "metrics.jsonl").read_text() == "1\n3\n"
    names = sorted(path.name for path in run.path.iterdir())
    assert names == ["checkpoints", "metrics.jsonl", "models", "run.lock"]
    assert (run.path / "models/step-000000005").is_dir()
    assert (run.path / "checkpoints/.step-000000005.tmp").exists()


def test_a_run_that_was_deleted_in_the_store_does_not_come_back_from_a_copy(machine, tmp_path):
    run = machine("one")
    (run.path / "metrics.jsonl").write_text("1\n")
    (run.path / "result.json").write_text("{}")
    run.pull()
    assert not list(run.path.iterdir())


def test_what_a_driver_writes_stays_for_a_reader_and_goes_with_the_next_driver(machine, tmp_path):
    run = machine("one")
    run.write("config.json", b"{}")
    part = tmp_path / "store/run/.metrics.jsonl.12ab.part"
    part.write_text("1")
    assert fetched_run(run.uri) == run.path and part.exists()
    run.pull()
    assert not part.exists()
    assert [path.name for path in run.path.iterdir()] == ["config.json"]


def test_the_options_of_a_uri_stay_at_its_end():
    run = RunFolder.of("s3://bucket/runs?endpoint_override=host:9000&scheme=http", "run")
    assert run.uri == "s3://bucket/runs/run?endpoint_override=host:9000&scheme=http"
    assert run.checkpoints.uri == (
        "s3://bucket/runs/run/checkpoints?endpoint_override=host:9000&scheme=http"
    )


def test_a_secret_in_the_uri_is_not_shown():
    run = RunFolder.of("s3://KEY:SECRET@bucket/runs", "run")
    assert run.location == "s3://bucket/runs/run"


def test_a_run_and_a_checkpoint_at_a_uri_are_copied_here(machine, tmp_path):
    run = machine("one")
    for step, top1 in ((1, 0.9), (2, 0.5)):
        write(run.checkpoints.folder, step, run.checkpoints.uri, metrics={"select/top1": top1})
    run.write("config.json", b"{}")
    other = machine("two")
    assert fetched_run(run.uri) == other.path
    assert [path.name for path in other.path.iterdir()] == ["config.json"]
    assert fetched_model(run.uri) == other.path / "checkpoints/step-000000001"  # selected
    found = fetched_model(f"{run.uri}/checkpoints/step-000000002")
    assert found == other.path / "checkpoints/step-000000002"
    assert (found / "meta.json").exists()
    with pytest.raises(FileNotFoundError, match="has no complete checkpoint"):
        fetched_model(f"{run.uri}/checkpoints/step-000000003")
    assert fetched_model(str(tmp_path)) == fetched_run(str(tmp_path)) == tmp_path


def test_a_prefix_that_holds_no_run_is_refused_and_nothing_in_it_is_read(machine, monkeypatch):
    machine("one")
    monkeypatch.setattr(store, "listing", None)  # a file is found by its name, among 50,000
    objects = s3_server.Objects()
    photos = {f"bucket/photos/{number}.jpg": b"x" for number in range(3)}
    with s3_server.serving("bucket", objects) as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        objects.objects |= {**photos, "bucket/vit/a.npz": b"weights"}
        for fetch in (fetched_run, fetched_model):
            with pytest.raises(FileNotFoundError, match="s3://bucket/photos is no run, checkpoint"):
                fetch("s3://bucket/photos")
        assert fetched_model("s3://bucket/vit/a.npz").read_bytes() == b"weights"
    assert {place for place, _ in objects.reads} == {"bucket/vit/a.npz"}


def test_a_file_and_a_folder_of_another_program_at_a_uri_are_copied_here(machine, tmp_path):
    machine("one")
    place = tmp_path / "store"
    folder = place / "vit"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    (folder / "training_args.bin").write_bytes(b"a pickle")
    found = fetched_model(folder.as_uri())
    assert sorted(path.name for path in found.iterdir()) == ["config.json", "model.safetensors"]
    (place / "vit.npz").write_bytes(b"1")
    file = fetched_model((place / "vit.npz").as_uri())
    assert (file.name, file.read_bytes()) == ("vit.npz", b"1")
    assert fetched_model((place / "vit.npz").as_uri()) == file
    (place / "vit.npz").write_bytes(b"22")  # another file of that name
    assert fetched_model((place / "vit.npz").as_uri()).read_bytes() == b"22"
    with pytest.raises(FileNotFoundError, match=r"none.npz does not exist"):
        fetched_model((place / "none.npz").as_uri())
