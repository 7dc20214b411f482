"""Imports go one way, and each third-party system has one door."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("shards", "vit", "pipeline", "tune")
MAY_IMPORT = {
    "shards": {"shards"},
    "vit": {"vit"},
    "pipeline": {"shards", "vit", "pipeline"},
    "tune": set(PACKAGES),
}
ONLY_IN = {
    "torch": ("vit/", "pipeline/"),
    "ray": ("pipeline/", "tune/", "shards/build/ray_map.py"),
    "mlflow": ("pipeline/tracking/mlflow_client.py",),
    "tyro": ("/__main__.py",),
    "timm": (),
    "torchvision": (),
}
# these run in decode processes, or before a command line has been read
TORCH_FREE = (
    *("vit/config.py", "vit/images.py", "vit/randaugment.py", "vit/draws.py"),
    *(
        "pipeline/settings/config.py",
        "pipeline/data/reader.py",
        "support/console.py",
        "pipeline/__main__.py",
    ),
)


def imported(path: Path) -> set[str]:
    """Modules that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def violations(files: dict[str, set[str]]) -> list[str]:
    """Imports against the rules, in {file: imported modules}."""
    found = []
    for name, modules in files.items():
        package = name.split("/")[0]
        for top in sorted({module.split(".")[0] for module in modules}):
            if top in PACKAGES and top not in MAY_IMPORT[package]:
                found.append(f"{name} imports {top}")
            if top in ONLY_IN and not any(door in f"/{name}" for door in ONLY_IN[top]):
                found.append(f"{name} imports {top}")
        if name in TORCH_FREE and any(m.split(".")[0] in ("torch", "ray") for m in modules):
            found.append(f"{name} must stay free of torch and Ray")
    return found


def test_imports_go_one_way_and_through_one_door():
    files = {
        str(path.relative_to(ROOT)): imported(path)
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    assert len(files) > 20
    assert violations(files) == []


def test_planted_violations_are_caught():
    planted = {
        "shards/dataset/tar.py": {"torch"},
        "vit/model.py": {"pipeline.settings.config", "timm.models"},
        "pipeline/run.py": {"tune.search", "mlflow"},
        "pipeline/data/reader.py": {"ray.data"},
    }
    assert len(violations(planted)) == 6
    assert all((ROOT / name).exists() for name in TORCH_FREE)


def test_packages_re_export_nothing():
    for package in PACKAGES:
        tree = ast.parse((ROOT / package / "__init__.py").read_text())
        assert len(tree.body) == 1 and ast.get_docstring(tree)
