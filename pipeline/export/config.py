"""Settings of an export; this module imports neither torch nor Ray."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Self

from pipeline.export.formats import FORMATS
from pipeline.settings.location import absolute
from support.settings import Rule, Settings, setting


@dataclass(frozen=True, kw_only=True)
class ExportConfig(Settings):
    """How a checkpoint is written for another library."""

    to: str = setting("timm", choices=lambda: FORMATS, common=True)
    """Format: timm, transformers, npz (Google's JAX code), onnx, torch (torch.export) or int8
    (torchao)."""
    head: Literal["keep", "drop"] = setting("keep", common=True)
    """For timm, transformers, onnx and torch: drop leaves out the head, and the tanh layer before
    it, which timm and transformers lack; the outputs are features."""
    layout: Literal["vit", "big_vision"] = setting("vit", common=True)
    """For npz: the layout of vision_transformer and AugReg, or that of big_vision."""
    preprocess: bool = setting(False, common=True)
    """For onnx and torch: the graph takes crops (B, S, S, 3) uint8 and normalises them itself, not
    normalised float32 (B, 3, S, S)."""
    scheme: Literal["static", "dynamic", "weight"] = setting("static", common=True)
    """For int8: weights and activations with ranges from images of --data, with ranges of each
    token, or only weights; see vit/quant.py."""
    data: str | None = setting(None, common=True)
    """Shard set of the images on which the export is checked, and int8 calibrated; by default that
    of the checkpoint's run, on which the check may do without: it then takes random pixels."""

    def rules(self) -> Iterator[Rule]:
        """Every setting has an effect on the format."""
        for item in dataclasses.fields(self):
            takes = [name for name, row in FORMATS.items() if item.name in row.options]
            if takes and self.to not in takes and getattr(self, item.name) != item.default:
                yield item.name, f"has no effect on {self.to}; it is for {', '.join(takes)}"

    def absolute(self) -> Self:
        """The config with absolute paths."""
        return self.replace({"data": absolute(self.data)})
