"""The model card of an export, README.md: what is recorded of the model, and nothing else."""

import importlib.metadata
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from pipeline.checkpoint.local import META, Checkpoint, provenance
from pipeline.evaluation.config import RESULT
from pipeline.evaluation.result_table import figure_text, selection
from pipeline.export.check import Agreement
from pipeline.export.config import ExportConfig
from pipeline.export.formats import FORMATS
from pipeline.export.source import Source
from pipeline.settings.config import TrainConfig
from pipeline.settings.presets import PRESETS
from shards.dataset.classes import class_list, described
from support.command import DISTRIBUTION
from support.redact import redact
from vit.registry import LOSSES
from vit.weights import MODEL_FILE

# settings that say where and how fast a run was computed, not what
ELSEWHERE = ("name", "runs_dir", "experiment", "data.dir", "init_from", "record.", "probe.")
ELSEWHERE += ("device", "worker", "min_workers", "log_every", "eval_every", "checkpoint_", "keep_")
ELSEWHERE += ("model.num_classes", "max_restarts", "hang_minutes", "audit", "data.eval_split")
# a setting that every run has, and a linear probe has not
OF_TRAINING = "optim.lr"
HEAD = (
    "| data | split | crops | average of | images | top-1 (Wilson 95 %) | top-5 |"
    " mean per class (95 %) |"
)
TERMS = (
    "ImageNet's terms of access (image-net.org/download) let researchers use the database only for"
    " non-commercial research and educational purposes. They are about the database, and do not say"
    " whether weights that were trained on it are bound by them."
)


def card(source: Source, config: ExportConfig, usage: str, agreement: Agreement) -> str:
    """The text of the card."""
    row, is_body = FORMATS[config.to], source.output == "features"
    task = "image-feature-extraction" if is_body else "image-classification"
    parts = [
        f"---\nlibrary_name: {row.package or DISTRIBUTION}\npipeline_tag: {task}\n"
        "license: other\n---",
        f"# {title(source)}",
        "\n".join(model_lines(source)),
        f"## Use\n\nThis is {row.summary}. In this folder:\n\n```python\n{usage.rstrip()}\n```",
        preparation_text(source),
        f"Checked when it was exported: {without_paths(source, agreement)}.",
        *training(source),
        "## Results\n\n" + "\n".join(results(source)),
        "## Versions\n\n" + "\n".join(versions(source)),
        f"## Licence\n\n{licence(source)}",
    ]
    return redact("\n\n".join(parts)) + "\n"


def checkpoint_of(source: Source) -> Checkpoint | None:
    """The checkpoint that is exported; None for a file of weights."""
    path = source.eval_model.path
    return Checkpoint.open(path, only=MODEL_FILE) if (path / META).is_file() else None


def title(source: Source) -> str:
    """The name of the run and the step, or the name of the file."""
    checkpoint = checkpoint_of(source)
    if checkpoint is None:
        return source.eval_model.path.name
    return f"{checkpoint.config['name']}, step {checkpoint.step:,}"


def model_lines(source: Source) -> Iterator[str]:
    """The shape of the model and its classes."""
    config = source.config
    count = sum(parameter.numel() for parameter in source.model.parameters())
    yield f"A Vision Transformer: {count:,} parameters, {source.output} of images of"
    yield f"{config.image_size} x {config.image_size} pixels in patches of {config.patch_size};"
    yield f"width {config.width}, {config.depth} blocks, {config.heads} heads, pool {config.pool}."
    if source.classes is not None:
        link = LOSSES[source.eval_model.loss.name].link
        guess = " (as the number of outputs suggests)" if source.eval_model.classes is None else ""
        yield f"Classes: {described(source.classes)}{guess}. Probabilities: {link} of the logits."


def preparation_text(source: Source) -> str:
    """How images are prepared, and what another library does instead."""
    images, size = source.images, source.config.image_size
    side = images.eval_side(size)
    what = "both sides" if images.eval_resize == "squash" else "the shorter side"
    text = (
        f"Images: {what} resized to {side} pixels ({images.eval_interpolation}), the centre of"
        f" {size} x {size}, then (pixel / 255 - mean) / std with mean {images.mean} and std"
        f" {images.std}."
    )
    if source.told == images:
        return text
    return (
        f"{text} Other libraries do not have this resize, and the files here say"
        f" {source.told.eval_interpolation}, the nearest: pixels, and so accuracies, differ."
    )


def training(source: Source) -> Iterator[str]:
    """The data and the recipe, as the checkpoint records them."""
    checkpoint = checkpoint_of(source)
    if checkpoint is None:
        yield "## Training\n\nThe file of weights does not say how it was trained."
        return
    settings = checkpoint.config
    if OF_TRAINING not in settings:
        yield from probing(source, checkpoint)
        return
    yield (
        f"## Training\n\nData: {place(settings['data.dir'])} (fingerprint"
        f" {checkpoint.fingerprint}), {described(checkpoint.classes)};"
        f" {checkpoint.samples:,} samples seen by step {checkpoint.step:,}. Initial weights:"
        f" {place(settings['init_from']) if settings.get('init_from') else 'random'}."
    )
    base, of = recipe(source, settings["name"])
    changes = [
        f"| `{name}` | `{json.dumps(without_folders(settings[name]))}` |"
        for name, value in base.flat().items()
        if not name.startswith(ELSEWHERE) and settings.get(name, value) != value
    ]
    if not changes:
        yield f"Settings: those of {of}."
        return
    yield "\n".join([f"Settings that differ from {of}:\n", "| setting | value |", "|---|---|"]) + (
        "\n" + "\n".join(changes)
    )


def recipe(source: Source, name: object) -> tuple[TrainConfig, str]:
    """The preset that names its runs so, or else the defaults; and what it is, in words."""
    for preset_name, preset in PRESETS.items():
        base = preset.config
        if preset.of_weights:
            base = preset.of_weights(source.eval_model.model, source.eval_model.images)
        if base.name == name:
            return base, f"the preset {preset_name} ({preset.source})"
    return TrainConfig(), "the defaults"


def probing(source: Source, checkpoint: Checkpoint) -> Iterator[str]:
    """The body, the data and the protocol of a linear probe, as its result records them."""
    settings, folder = checkpoint.config, source.eval_model.run_dir
    yield (
        f"## Training\n\nA linear probe: the body is that of {place(settings['init_from'])}, step"
        f" {checkpoint.step:,}, and was not trained further; a new head was fitted to its features."
        f" Data: {place(settings['data.dir'])}, split {settings['data.train_split']} (fingerprint"
        f" {checkpoint.fingerprint}), {described(checkpoint.classes)}."
    )
    if folder and (folder / RESULT).is_file():
        result = json.loads((folder / RESULT).read_text())
        yield (
            f"Protocol: {result['protocol']}. Strength {result['strength']:.2e}, selected on"
            f" {result['held_out']:,} of {result['train_images']:,} images."
        )


def place(location: object) -> str:
    """The last part of a path or URI: where a machine keeps its data is nobody's concern."""
    return str(location).partition("?")[0].rstrip("/").rpartition("/")[2]


def without_folders(value: object) -> object:
    """The value of a setting, with the last part alone of each path or URI."""
    if isinstance(value, list):
        return [without_folders(each) for each in value]
    return place(value) if isinstance(value, str) else value


def data_name(source: Source, location: str) -> str:
    """The name of a shard set; that of the run as its settings have it."""
    checkpoint, own = checkpoint_of(source), source.eval_model.data
    is_own = checkpoint and own and location in (own, redact(own))
    return place(checkpoint.config["data.dir"] if is_own else location)


def without_paths(source: Source, agreement: Agreement) -> Agreement:
    """The same, with the name of the data in place of its location."""
    if source.location is None:
        return agreement
    name = data_name(source, source.location)
    return replace(agreement, origin=agreement.origin.replace(source.location, name))


def results(source: Source) -> Iterator[str]:
    """All that is recorded of the accuracy of these weights, as rows of a table."""
    rows = [row for result in evaluations(source) for row in rows_of(source, result)]
    checkpoint = checkpoint_of(source)
    if source.output == "features" and (rows or checkpoint):
        yield "Of the model with its head, which is not in this folder.\n"
    if not rows and checkpoint and checkpoint.metrics:
        metrics = ", ".join(f"{name} {value:.4f}" for name, value in checkpoint.metrics.items())
        split = checkpoint.config["data.eval_split"]
        where = "In the training loop" if OF_TRAINING in checkpoint.config else "By the probe"
        yield f"{where}, on split {split} with one centre crop: {metrics}."
    elif not rows:
        yield "No evaluation of these weights is recorded."
    else:
        yield HEAD
        yield "|---|---|---|---|---:|---:|---:|---:|"
        yield from rows
        yield from (
            f"\n{text}" for text in dict.fromkeys(map(selection, evaluations(source))) if text
        )


def evaluations(source: Source) -> Iterator[Mapping]:
    """The results of all evaluations of exactly these weights, in the folder of their run."""
    if source.eval_model.run_dir is None:
        return
    weights = source.eval_model.sha256()
    for path in sorted(source.eval_model.run_dir.glob(f"evaluations/*/{RESULT}")):
        result = json.loads(path.read_text())
        if result.get("weights_sha256") == weights:
            yield result
    own = source.eval_model.run_dir / RESULT
    if own.is_file() and "probed" in (result := json.loads(own.read_text())):
        yield result


def rows_of(source: Source, result: Mapping) -> Iterator[str]:
    """The rows of one evaluation, and of that of ImageNet-V2 beside it."""
    for name, values in result["protocols"].items():
        views, data = values["views"], data_name(source, result["data"])
        about = (f"{name} ({views})", result["average"] if views > 1 else "-")
        others = f"{values['top5']:.4f}", figure_text("mean_per_class", values)
        yield table_row(data, result["split"], *about, *top1(values), *others)
        if "real" in result:
            figures = top1(result["real"]["protocols"][name])
            yield table_row(data, f"{result['split']}, ReaL labels", *about, *figures, "-", "-")
    if "v2" in result:
        v2 = result["v2"]
        yield from rows_of(source, {**v2, "split": f"{v2['split']}, ImageNet-V2"})


def top1(values: Mapping) -> tuple[str, str]:
    """Number of images, and accuracy with its interval."""
    return f"{values['images']:,}", figure_text("top1", values)


def table_row(*cells: str) -> str:
    """A row of a table in Markdown."""
    return f"| {' | '.join(cells)} |"


def versions(source: Source) -> Iterator[str]:
    """Code and libraries of the training and of the export."""
    if checkpoint_of(source):
        meta = json.loads((source.eval_model.path / META).read_text())
        yield f"Trained with {listed(meta)}."
    own = f"{DISTRIBUTION} {importlib.metadata.version(DISTRIBUTION)}"
    yield f"Exported with {own}, {listed(provenance())}."
    yield f"SHA-256 of the weights that were exported: {source.eval_model.sha256()}."


def listed(made_by: Mapping) -> str:
    """Commit and versions."""
    names = [f"{name} {version}" for name, version in made_by["versions"].items()]
    return ", ".join([f"commit {made_by['commit'] or 'unknown'}", *names])


def licence(source: Source) -> str:
    """What is known of the rights in the weights."""
    checkpoint = checkpoint_of(source)
    classes = checkpoint.classes if checkpoint else source.classes
    text = (
        "No licence of these weights is stated here: who publishes them chooses one, and answers"
        " for it. That of the code that wrote this folder, Apache-2.0, is not theirs."
    )
    if classes is None or not set(classes) <= set(class_list("goog")):
        return text
    return f"{text} The classes are ImageNet's. {TERMS} The names of classes are WordNet 3.0's."


def write_classes(source: Source, path: Path) -> None:
    """Write the classes as `--classes` of other commands reads them: a wnid and its name a line."""
    path.write_text("".join(f"{wnid} {name}\n" for wnid, name in source.labels.items()))
