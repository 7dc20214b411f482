"""timm and transformers, with which tests compare this project's models and files."""

import importlib.util
import sys
from types import ModuleType
from unittest.mock import MagicMock

import pytest

# what timm imports of torchvision, and does not call in its models
PARTS = ("datasets", "models", "models.feature_extraction", "ops", "ops.misc")
PARTS += ("transforms", "transforms.functional")
TORCHVISION = ("torchvision", *(f"torchvision.{part}" for part in PARTS))


def library(name: str) -> ModuleType:
    """A library or a module of one; the test is skipped only where it is not installed."""
    package = name.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install -e '.[dev]'")
    if package in sys.modules or torchvision_imports():
        return importlib.import_module(name)
    # torchvision's packages are for the CUDA build of PyTorch; beside the CPU build transformers
    # does without it, and timm is content with anything of these names
    stand_in = MagicMock() if package == "timm" else None
    sys.modules.update(dict.fromkeys(TORCHVISION, stand_in))
    try:
        return importlib.import_module(name)
    finally:
        sys.modules.update(dict.fromkeys(TORCHVISION))


def torchvision_imports() -> bool:
    """Whether torchvision is there and fits the build of PyTorch."""
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError):
        return False
    return True
