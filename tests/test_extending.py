"""A loss, an optimizer, a crop protocol and a metric are added by one row of a table each."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import toys

from pipeline.__main__ import main
from pipeline.evaluation import metrics
from pipeline.settings.budget import Budget
from pipeline.settings.presets import find_preset
from pipeline.tracking.journal import read_events
from tune.actor import chance_loss
from tune.config import SearchConfig
from tune.space import make_space
from vit import registry

TESTS = Path(__file__).parent
CHANGES = {"loss.name": "squared", "optim.name": "rmsprop", "optim.lr": 1e-3, "crops": "pair"}

# its own process: the workers of its Ray have the same rows
SCRIPT = """
import json, sys
import ray
import toys
from pipeline.run import fit
from pipeline.settings.presets import find_preset

toys.register()
ray.init(
    address="local",
    num_cpus=4,
    include_dashboard=False,
    log_to_driver=False,
    logging_level="ERROR",
    runtime_env={"worker_process_setup_hook": toys.register},
)
small = {"model.depth": 1, "model.width": 64, "model.mlp_width": 64, "model.heads": 2}
small |= {"epochs": 4, "workers": 1, "eval_every": 30, "name": "toy", "runs_dir": sys.argv[1]}
outcome = fit(find_preset("demo").replace({**small, **json.loads(sys.argv[2])}))
print(json.dumps(outcome.protocols))
"""


@pytest.fixture
def registered():
    """The toys, in this process, for one test."""
    tables = (registry.LOSSES, registry.OPTIMIZERS, registry.CROPS, metrics.METRICS)
    before = [dict(table) for table in tables]
    toys.register()
    yield
    for table, rows in zip(tables, before, strict=True):
        table.clear()
        table.update(rows)


def test_settings_plan_and_help_know_them(registered, capsys):
    config = find_preset("demo").replace(CHANGES)
    assert config.loss.name == "squared" and config.crops == "pair"
    plan = Budget(config, gpu="H100", mfu=0.4)
    # weights and one moment of four bytes each
    assert plan.checkpoint_bytes == 8 * plan.config.model.num_parameters
    with pytest.raises(SystemExit):
        main(["train", "demo", "--help-all"])
    shown = capsys.readouterr().out
    assert "adamw,adamw8bit,lamb,sgd,rmsprop" in shown and "semantic,squared" in shown


def test_a_search_knows_them(registered):
    assert SearchConfig(objective="val/top2").sign == -1
    base = find_preset("demo").replace({**CHANGES, "model.num_classes": 10})
    assert chance_loss(base) == 2.5
    changes = ("optim.name=choice(adamw,rmsprop)", "loss.name=choice(squared,softmax)")
    space = make_space("warmup-lr", changes, base, 1437)
    assert space.dimensions["optim.name"].options == ("adamw", "rmsprop")


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_trains_evaluates_records_and_reports_with_them(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), json.dumps(CHANGES)],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        env={**os.environ, "PYTHONPATH": f"{TESTS}:{TESTS.parent}"},
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    protocols = json.loads(result.stdout.splitlines()[-1])
    assert protocols["pair"]["views"] == 2
    for values in protocols.values():
        assert 0 < values["top1"] <= values["top2"] <= values["top5"]
        assert values["top2_low"] < values["top2"] < values["top2_high"]
        assert 0 < values["loss"] < 2.0  # 2 for a model to which every class is improbable
    run = tmp_path / "toy"
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all("val/top2" in record for record in records if record["kind"] == "eval")
    events = [event for event in read_events(run) if event["event"] == "evaluation"]
    assert any("eval/val/pair-logits/top2" in event["metrics"] for event in events)
    page = (run / "report.html").read_text()
    assert "top-2" in page and "pair" in page
