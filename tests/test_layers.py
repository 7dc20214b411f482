"""Imports go one way, between packages and between folders, and each system has one door."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("support", "shards", "vit", "pipeline", "tune")
# what each folder may import besides itself; files at the top of a package may import all of it
FOLDERS = {
    "support": set(),
    "shards/dataset": {"support"},
    "shards/build": {"support", "shards/dataset"},
    "shards/check": {"support", "shards/dataset", "shards/build"},
    "shards": {"support"},
    "vit": {"support"},
    "vit/native": {"support", "vit"},
    "pipeline/settings": {"support", "shards", "vit"},
    "pipeline/settings/recipes": {"support", "shards", "vit"},  # a part of settings
    "pipeline/cluster": {"support", "shards"},
    "pipeline/data": {"support", "shards", "vit", "pipeline/settings"},
    "pipeline/checkpoint": {"support", "shards", "vit", "pipeline/settings", "pipeline/data"},
    "pipeline/evaluation": {
        *("support", "shards", "vit", "pipeline/cluster"),
        *("pipeline/settings", "pipeline/data", "pipeline/checkpoint"),
    },
    "pipeline/predict": {"support", "shards", "vit", "pipeline/cluster", "pipeline/evaluation"},
    "pipeline/export": {
        *("support", "shards", "vit", "pipeline/settings", "pipeline/data"),
        *("pipeline/checkpoint", "pipeline/evaluation"),
    },
    "pipeline/tracking": {
        *("support", "shards", "vit", "pipeline/settings", "pipeline/data"),
        *("pipeline/checkpoint", "pipeline/evaluation"),
    },
    "pipeline/report": {
        *("support", "shards", "vit", "pipeline/settings", "pipeline/data"),
        *("pipeline/checkpoint", "pipeline/evaluation", "pipeline/tracking"),
    },
    "pipeline/train": {
        *("support", "shards", "vit", "pipeline/settings", "pipeline/cluster", "pipeline/data"),
        *("pipeline/checkpoint", "pipeline/evaluation"),
    },
    "pipeline/launch": {
        *("support", "shards", "vit", "pipeline/settings", "pipeline/data"),
        "pipeline/checkpoint",
    },
    "pipeline": {"support", "shards", "vit"},
    "pipeline/commands": {"support", "shards", "vit", "pipeline", "pipeline/launch"},
    "tune": {"support", "shards", "vit", "pipeline"},
}
# files that alone may import a system
ONLY_IN = {
    "torch": ("vit/", "pipeline/"),
    "ray": ("pipeline/", "tune/", "shards/build/ray_map.py"),
    "mlflow": (
        *("pipeline/tracking/mlflow_client.py", "pipeline/tracking/mlflow_model.py"),
        *("pipeline/tracking/mlflow_models.py", "pipeline/tracking/mlflow_data.py"),
        "pipeline/tracking/mlflow_weights.py",
        "pipeline/tracking/image_classifier.py",
    ),
    "tyro": ("/__main__.py", "pipeline/commands/", "support/command.py"),
    "jinja2": ("support/page.py",),
    "matplotlib": ("support/chart.py",),
    "timm": ("pipeline/export/timm_folder.py",),
    "torchvision": (),
    "transformers": ("pipeline/export/transformers_folder.py",),
    "onnxruntime": ("pipeline/export/onnx_graph.py",),
}
# these run in decode processes, or before a command line has been read
TORCH_FREE = (
    *("vit/config.py", "vit/registry.py", "vit/images.py", "vit/crops.py", "vit/randaugment.py"),
    *("vit/train_crops.py", "vit/augment.py", "vit/augment_config.py", "vit/model_config.py"),
    *("vit/draws.py", "pipeline/settings/config.py", "pipeline/settings/presets.py"),
    *("pipeline/data/order.py", "pipeline/data/reader.py", "pipeline/evaluation/metrics.py"),
    *("pipeline/evaluation/config.py", "pipeline/__main__.py", "tune/__main__.py"),
    *("pipeline/commands/train.py", "pipeline/commands/evaluate.py", "pipeline/commands/runs.py"),
    *("pipeline/commands/launch.py", "pipeline/commands/jobs.py", "pipeline/commands/predict.py"),
    *("pipeline/commands/export.py", "pipeline/export/config.py", "pipeline/export/formats.py"),
    *("pipeline/commands/probe.py", "pipeline/commands/checkpoint.py"),
    *("pipeline/commands/comparison.py", "pipeline/report/run_summary.py"),
    *("pipeline/report/run_list.py", "pipeline/report/run_data.py"),
    *("pipeline/report/run_files.py", "pipeline/report/run_state.py"),
    *("vit/native/__main__.py", "vit/native/build.py", "vit/native/model.py"),
    *("vit/native/predict.py", "vit/native/preparation.py", "vit/native/quantise.py"),
    *("vit/native/toolchain.py", "vit/native/plan.py"),
    *("tune/config.py", "tune/space.py", "support/console.py", "support/command.py"),
)


def imported(path: Path) -> set[str]:
    """Modules that a file imports, inside functions too."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports relatively"
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


def folder_of(module: str) -> str | None:
    """Folder of a module of ours ("pipeline.data.order.Order" -> "pipeline/data")."""
    package, _, rest = module.partition(".")
    if package not in PACKAGES:
        return None
    folder = f"{package}/{rest.partition('.')[0]}"
    return folder if folder in FOLDERS else package


def allowed(source: str, target: str) -> bool:
    """Whether a file in the folder `source` may import from the folder `target`."""
    package = target.partition("/")[0]
    return source in (target, package) or not FOLDERS[source].isdisjoint({target, package})


def violations(files: dict[str, set[str]]) -> list[str]:
    """Imports against the rules, in {file: imported modules}."""
    wrong = []
    for name, modules in files.items():
        source = folder_of(name.removesuffix(".py").replace("/", "."))
        for target in sorted({folder_of(module) for module in modules} - {None}):
            if not allowed(source, target):
                wrong.append(f"{name} imports {target}")
        tops = {module.partition(".")[0] for module in modules}
        for top in sorted(tops & ONLY_IN.keys()):
            if not any(door in f"/{name}" for door in ONLY_IN[top]):
                wrong.append(f"{name} imports {top}")
        if name in TORCH_FREE and tops & {"torch", "ray"}:
            wrong.append(f"{name} must stay free of torch and Ray")
    return wrong


def circles(files: dict[str, set[str]]) -> list[str]:
    """Files that import each other, directly or through others."""
    modules = {name.removesuffix(".py").replace("/", "."): name for name in files}
    edges = {
        name: {
            modules[m] for each in imports for m in (each, each.rpartition(".")[0]) if m in modules
        }
        for name, imports in files.items()
    }
    left = dict(edges)
    while True:  # take away files that import nothing that is left
        ends = [name for name, targets in left.items() if not (targets & left.keys()) - {name}]
        if not ends:
            return sorted(left)
        for name in ends:
            del left[name]


@pytest.fixture(scope="module")
def files():
    """Every file of the product with what it imports."""
    return {
        str(path.relative_to(ROOT)): imported(path)
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }


def test_imports_go_one_way_and_through_one_door(files):
    assert len(files) > 100
    assert violations(files) == []
    assert all(name in files for name in TORCH_FREE)


def test_every_folder_has_its_rule(files):
    folders = {name.rpartition("/")[0] for name in files}
    assert folders == FOLDERS.keys()


def test_no_files_import_each_other_in_a_circle(files):
    assert circles(files) == []


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("shards/dataset/tar.py", "torch"),
        ("shards/dataset/tar.py", "shards.build.pack"),
        ("shards/build/pack.py", "shards.check.verify"),
        ("vit/model.py", "pipeline.settings.config"),
        ("vit/model.py", "shards.dataset.store"),
        ("vit/model.py", "timm.models"),
        ("support/files.py", "shards.dataset.store"),
        ("pipeline/settings/config.py", "pipeline.data.order.Order"),
        ("pipeline/data/order.py", "pipeline.checkpoint.local"),
        ("pipeline/checkpoint/local.py", "pipeline.evaluation.model"),
        ("pipeline/evaluation/model.py", "pipeline.tracking.journal"),
        ("pipeline/export/source.py", "pipeline.tracking.journal"),
        ("pipeline/export/check.py", "timm"),
        ("pipeline/tracking/journal.py", "pipeline.report.run_page"),
        ("pipeline/report/run_page.py", "pipeline.train.job"),
        ("pipeline/train/worker.py", "pipeline.tracking.recorder"),
        ("pipeline/train/worker.py", "pipeline.run"),
        ("pipeline/run.py", "tune.search"),
        ("pipeline/run.py", "mlflow"),
        ("pipeline/data/reader.py", "ray.data"),
        ("tune/page.py", "matplotlib.figure"),
        ("shards/check/page.py", "jinja2"),
    ],
)
def test_a_planted_violation_is_caught(name, module):
    assert len(violations({name: {module}})) == 1


def test_a_planted_circle_is_caught():
    planted = {
        "vit/a.py": {"vit.b.f"},
        "vit/b.py": {"vit.c"},
        "vit/c.py": {"vit.a.g"},
        "vit/d.py": {"vit.a.g"},
    }
    assert circles(planted) == ["vit/a.py", "vit/b.py", "vit/c.py", "vit/d.py"]


def test_packages_re_export_nothing(files):
    for name in files:
        if name.endswith("__init__.py"):
            tree = ast.parse((ROOT / name).read_text())
            assert len(tree.body) == 1 and ast.get_docstring(tree), name


def test_no_file_is_longer_than_300_lines(files):
    folder = ROOT / "vit/native/source"
    sources = [str(path.relative_to(ROOT)) for path in folder.rglob("*") if path.is_file()]
    lines = {name: (ROOT / name).read_text().splitlines() for name in (*files, *sources)}
    assert [name for name, text in lines.items() if len(text) > 300] == []
    assert [name for name in sources if max(map(len, lines[name])) > 100] == []
