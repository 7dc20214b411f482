"""Where something is: a path, a URI, or the address of a model in MLflow."""

from pathlib import Path

# what the address of an MLflow model, or of an artifact of a run, begins with
MLFLOW = ("models:/", "runs:/")


def is_address(location: str) -> bool:
    """Whether a location is a URI or in MLflow: what is there comes to a machine by a copy."""
    return "://" in location or location.startswith(MLFLOW)


def absolute(location: str | None) -> str | None:
    """The absolute form of a path; an address or None is returned unchanged."""
    return str(Path(location).absolute()) if location and not is_address(location) else location
