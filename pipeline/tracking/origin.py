"""Who starts a run, with which program and which code, as MLflow's own tags say it.

`mlflow.start_run` sets the same tags, from which MLflow's page takes "Created by" and "Source".
"""

import getpass
import os
import sys
from pathlib import Path

from support import code


def origin() -> dict[str, str]:
    """Tags of a run that this process starts; without a commit where there is no repository."""
    tags = {
        "mlflow.user": user(),
        "mlflow.source.name": program(sys.argv[0]),
        "mlflow.source.type": "LOCAL",
    }
    found = code.commit()
    return tags | ({"mlflow.source.git.commit": found.removesuffix(code.DIRTY)} if found else {})


def user() -> str:
    """Who is known to the server, or to this machine."""
    try:
        return os.environ.get("MLFLOW_TRACKING_USERNAME") or getpass.getuser()
    except (KeyError, OSError):  # a container may run as a number without a name
        return f"uid {os.getuid()}"


def program(path: str) -> str:
    """The command that runs a file, as people type it."""
    file = Path(path)
    return f"python -m {file.parent.name}" if file.name == "__main__.py" else file.name or "python"
