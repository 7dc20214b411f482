"""The command that brings a checkpoint to another library: `python -m pipeline export`."""

import logging
from dataclasses import dataclass, field
from typing import ClassVar

import tyro

from pipeline.export.config import ExportConfig
from support.console import open_console

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a checkpoint for another library, checked there, with a model card."""

    interrupted: ClassVar[str] = "the same command begins anew"
    checkpoint: tyro.conf.Positional[str]
    """Folder or URI of a run or of a checkpoint, or a file of weights."""
    out: str
    """Folder to write, or an s3:// or gs:// prefix; it must be empty or not exist."""
    config: ExportConfig = field(default_factory=ExportConfig)

    def __call__(self) -> int:
        """Write the folder."""
        open_console(verbose=False)
        config = self.config.absolute()
        from pipeline.checkpoint.run_folder import fetched_model
        from pipeline.export.export import export

        export(fetched_model(self.checkpoint), self.out, config)
        log.info("wrote       %s", self.out)
        return 0
