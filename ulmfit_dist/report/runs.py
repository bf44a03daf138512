"""A run directory, read for its report: whatever of it is there, and sound.

A report is wanted most of runs that did not end well, and of folders that came from elsewhere. So everything but
metrics.jsonl may be missing, cut short or not what it should be: that part is left out, with a remark that the page
shows. The price: no type of a value is taken for granted, so each is looked at on its way in.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from ulmfit_dist.errors import UserError
from ulmfit_dist.metrics.calibration import ReliabilityBin
from ulmfit_dist.report.confusion import Confusion, WrongText, read_confusion, read_most_wrong, read_reliability
from ulmfit_dist.report.parsing import items, mapping, number, numbers, text
from ulmfit_dist.utils.files import read_bounded

STAGES = {"lm": "Language model", "classifier": "Classifier"}
MOST_METRICS = 256 * 2**20
MOST_TABLES = 64 * 2**20
MOST_FILE = 2**20
"""Bytes that metrics.jsonl, tables.json and each of the other files may have."""
MOST_SAMPLES = 200
MOST_LEVELS = 30


class Line(NamedTuple):
    """A line of metrics.jsonl: its phase (from 0), epochs and steps done by then, and `values` by name without the stage."""

    phase: int
    epoch: int
    step: int
    values: dict[str, float]


class Sample(NamedTuple):
    """A text that the language model made after an epoch (from 1)."""

    epoch: int
    text: str


class IntervalFigure(NamedTuple):
    """A metric on the test split, with its 95 % interval."""

    name: str
    value: float
    low: float
    high: float


@dataclass
class Stage:
    """What metrics.jsonl and summary.json say of a stage.

    Attributes:
        steps: lines that were logged every few steps.
        epochs: lines with validation metrics, one per epoch.
        figures: the final figures by name; those of the last epoch while the stage is not finished.
        is_finished: whether summary.json has the figures.
        num_epochs: epochs that the config asks for; None where it does not say.
    """

    steps: list[Line] = field(default_factory=list)
    epochs: list[Line] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)
    is_finished: bool = False
    num_epochs: int | None = None

    @property
    def lines(self) -> list[Line]:
        return [*self.steps, *self.epochs]

    @property
    def state(self) -> str:
        """How far it has come, in words."""
        if self.is_finished:
            return "finished"
        if not self.lines:
            return "not begun"
        step = max(line.step for line in self.lines)
        epochs = f"{len(self.epochs)} of {self.num_epochs}" if self.num_epochs else f"{len(self.epochs)}"
        return f"not finished: epochs done {epochs}, last seen at step {step:,}"


@dataclass
class Run:
    """A run directory.

    Attributes:
        name: what the page calls it.
        config: values by dotted key, as text.
        seconds: time taken by prepare, lm and classifier.
        facts: world_size, device and precision, as text.
        test: metrics of the classifier on its test split.
        baseline, baseline_test: metrics of the baseline on the validation documents, and on the test split.
        environment: command, revision, host and slurm_job, as text.
        remarks: what could not be read, in words.
    """

    path: Path
    name: str
    config_text: str = ""
    config: dict[str, str] = field(default_factory=dict)
    stages: dict[str, Stage] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    test: list[IntervalFigure] = field(default_factory=list)
    baseline: dict[str, float] = field(default_factory=dict)
    baseline_test: list[IntervalFigure] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    confusion: Confusion | None = None
    reliability: list[ReliabilityBin] = field(default_factory=list)
    most_wrong: list[WrongText] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    @property
    def short_name(self) -> str:
        """The name where there is little room: its end is kept, which is where names of one sweep differ."""
        return self.name if len(self.name) <= 26 else f"{self.name[:10]}…{self.name[-15:]}"


def read_run(path: Path) -> Run:
    """Read a run directory.

    Raises:
        UserError: it is none, or its metrics.jsonl cannot be read.
    """
    run = Run(path, path.resolve().name)
    content = _metrics(path)
    tree = _read_config(run)
    summary = mapping(_load(run, "summary.json", MOST_FILE, json.loads))
    _read_lines(run, content)
    for name, stage in run.stages.items():
        _read_figures(stage, summary.get(name), mapping(tree.get(name)))
    run.test = _read_test(summary.get("classifier"))
    run.baseline = numbers(mapping(summary.get("baseline")).get("valid"))
    run.baseline_test = _read_test(summary.get("baseline"))
    run.name = text(tree.get("name")) or text(summary.get("name")) or run.name
    run.seconds = numbers(summary.get("seconds"))
    run.facts = {key: text(summary.get(key)) for key in ("world_size", "device", "precision")}
    _read_tables(run, mapping(_load(run, "tables.json", MOST_TABLES, json.loads)))
    environment = mapping(_load(run, "environment.json", MOST_FILE, json.loads))
    run.environment = {key: text(environment.get(key)) for key in ("command", "revision", "host", "slurm_job")}
    run.versions = {text(key): text(version) for key, version in mapping(environment.get("versions")).items()}
    return run


def _metrics(path: Path) -> bytes:
    try:
        if not path.is_dir():
            raise UserError(f"{path}: no such folder: name a run directory, such as runs/quickstart")
        if not (path / "metrics.jsonl").exists():
            raise UserError(f"{path}: no run directory (no metrics.jsonl in it): name one, such as runs/quickstart")
        return read_bounded(path / "metrics.jsonl", MOST_METRICS)
    except OSError as error:
        raise UserError(
            f"{path / 'metrics.jsonl'}: cannot be read ({error.strerror or error}): mend it, or leave it out"
        ) from None


def _load(run: Run, name: str, most: int, parse: Callable[[bytes], Any]) -> Any:
    """A file of the run directory; None, with a remark where it is there but of no use."""
    try:
        return parse(read_bounded(run.path / name, most))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = error.strerror or str(error) if isinstance(error, OSError) else f"no sound {name.rsplit('.')[-1].upper()}"
        run.remarks.append(f"{name} cannot be read ({reason}), and is left out")
        return None


def _read_config(run: Run) -> dict[str, Any]:
    content = _load(run, "config.yaml", MOST_FILE, lambda content: content.decode("utf-8", "replace"))
    run.config_text = content or ""
    tree = mapping(_load(run, "config.yaml", MOST_FILE, _parse_yaml))
    run.config = _flatten(tree)
    return tree


def _parse_yaml(content: bytes) -> Any:
    """YAML of few levels and without aliases, by which a small file could become a huge tree, or an endless one."""
    depth = 0
    for event in yaml.parse(content, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MOST_LEVELS or isinstance(event, yaml.AliasEvent):
            raise ValueError("no config")
    return yaml.safe_load(content)


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return flat


def _read_lines(run: Run, content: bytes) -> None:
    run.stages = {name: Stage() for name in STAGES}
    lines = content.splitlines()
    unsound = []
    for i, line in enumerate(lines):
        try:
            name, position = _read_line(json.loads(line))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            unsound.append(i)
            continue
        stage = run.stages[name]
        (stage.epochs if "valid_loss" in position.values else stage.steps).append(position)
    for stage in run.stages.values():
        stage.steps.sort(key=lambda line: line.step)
        stage.epochs.sort(key=lambda line: (line.epoch, line.step))
    if unsound == [len(lines) - 1]:
        run.remarks.append("the last line of metrics.jsonl is cut short, and left out")
    elif unsound:
        run.remarks.append(f"{len(unsound):,} of the {len(lines):,} lines of metrics.jsonl cannot be read, and are left out")


def _read_line(line: Any) -> tuple[str, Line]:
    """The stage and the content of a line. Raises one of several exceptions for what is none."""
    stage = line["stage"]
    if stage not in STAGES:
        raise ValueError(stage)
    phase, epoch, step = (int(line[key]) for key in ("phase", "epoch", "step"))
    if min(phase, epoch, step) < 0 or max(phase, epoch, step) > 2**53:
        raise ValueError("no position")
    values = {key[len(stage) + 1 :]: value for key, value in line.items() if key.startswith(f"{stage}/")}
    return stage, Line(phase, epoch, step, numbers(values))


def _read_test(figures: Any) -> list[IntervalFigure]:
    """Return the metrics on the test split that have an interval, of the classifier's figures or the baseline's."""
    test = mapping(mapping(figures).get("test"))
    found = []
    for name, value in numbers(test).items():
        ends = [number(end) for end in items(test.get(f"{name}_interval"), 2)]
        if len(ends) == 2 and ends[0] is not None and ends[1] is not None:
            found.append(IntervalFigure(text(name), value, ends[0], ends[1]))
    return found


def _read_figures(stage: Stage, finished: Any, config: dict[str, Any]) -> None:
    stage.is_finished = isinstance(finished, dict)
    stage.figures = numbers(finished) if stage.is_finished else dict(stage.epochs[-1].values) if stage.epochs else {}
    epochs = [number(mapping(phase).get("epochs")) for phase in items(config.get("phases"), 1000)]
    sound = [int(n) for n in epochs if n is not None and 0 <= n < 1e6]
    stage.num_epochs = sum(sound) if len(sound) == len(epochs) else None


def _read_tables(run: Run, tables: dict[str, Any]) -> None:
    for sample in items(mapping(tables.get("lm")).get("samples"), MOST_SAMPLES):
        epoch = number(mapping(sample).get("epoch"))
        if epoch is not None and math.isfinite(epoch):
            run.samples.append(Sample(int(epoch), text(sample.get("text"))))
    classifier = mapping(tables.get("classifier"))
    run.confusion = read_confusion(classifier.get("labels"), classifier.get("confusion_matrix"))
    if run.confusion is None and "confusion_matrix" in classifier:
        run.remarks.append("the confusion matrix of tables.json is not one row and one column per label, and is left out")
    run.reliability = read_reliability(classifier.get("reliability"))
    run.most_wrong = read_most_wrong(classifier.get("most_wrong"))


def series(lines: list[Line], *names: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values (float64) of the first of these metrics that any line has; NaN for what no chart can show."""
    for name in names:
        found = [(line.step, line.values[name]) for line in lines if name in line.values]
        if found:
            steps, values = np.array(found, dtype=np.float64).T
            values[~(np.abs(values) < 1e30)] = np.nan
            return steps, values
    return np.zeros(0), np.zeros(0)
