"""Charts of a report: one run in detail, or the metrics of several runs overlaid.

In a comparison each run has one colour in all charts. Trade-off: every chart then shows a single metric, so the detailed
charts of one run (training and validation loss, learning rates of all layer groups) become several. A metric that no run has
gets no chart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ulmfit_dist.report.charts import NUM_COLOURS, Chart, Series
from ulmfit_dist.report.runs import Line, Run, Stage, series

TRAIN_LOSS = ("loss_smoothed", "loss", "train_loss")
"""Names of the training loss in lines of steps, in order of preference; older runs have the last."""
PARTS = {
    "data": "data",
    "forward": "forward",
    "backward": "backward",
    "communication": "communication",
    "optimizer": "optimizer",
    "checkpoint": "checkpoints",
}
"""Labels of the parts of a step, by the prefix of their metric."""
UNITS = {"lm": ("tokens_per_second", "tokens per second"), "classifier": ("examples_per_second", "documents per second")}
FROM_ZERO = ("Throughput", "Gradient norm", "Memory")
STEPS, EPOCHS = "optimizer steps", "epochs"


def stage_charts(stage: str, runs: Sequence[Run], prefix: str) -> list[Chart]:
    """Return the charts of a stage that have values; their names start with the prefix."""
    stages = [run.stages[stage] for run in runs]
    names = [run.short_name for run in runs] if len(runs) > 1 else ["last"]
    drawn = _charts_of_one(stage, stages[0]) if len(runs) == 1 else _charts_of_several(stage, stages, names)
    drawn += [
        _per_run(
            "Gradient norm", "norm before clipping", STEPS, names, [series(one.steps, "gradient_norm") for one in stages]
        ),
        _per_run("Memory", "GB", STEPS, names, [series(one.steps, "memory_gb") for one in stages]),
    ]
    boundaries = {STEPS: _phases(stages, by_epoch=False), EPOCHS: _phases(stages, by_epoch=True)}
    shown = [chart for chart in drawn if any(np.isfinite(line.y).any() for line in chart.series)]
    return [replace(chart, name=f"{prefix}-{i}", phases=boundaries[chart.x_label]) for i, chart in enumerate(shown)]


def step_parts(stage: Stage) -> dict[str, float]:
    """Return the mean milliseconds per step by part, without parts that were never measured."""
    seconds = {label: series(stage.steps, f"{part}_seconds")[1] for part, label in PARTS.items()}
    return {label: float(np.nanmean(values)) * 1e3 for label, values in seconds.items() if np.isfinite(values).any()}


def _charts_of_one(stage: str, one: Stage) -> list[Chart]:
    unit, unit_label = UNITS[stage]
    loss = [
        replace(_series("training", *series(one.steps, "loss", "train_loss"), 1, "faint"), note=""),
        _series("smoothed", *series(one.steps, "loss_smoothed"), 1),
        _series("validation", *series(one.epochs, "valid_loss"), 2, "points"),
    ]
    steps, smoothed = series(one.steps, *TRAIN_LOSS)
    perplexity = [
        _series("training", steps, _exp(smoothed), 1),
        _series("validation", *series(one.epochs, "perplexity"), 2, "points"),
    ]
    quality = [
        _series("accuracy", *_by_epoch(one.epochs, "accuracy"), 1, "points"),
        _series("macro-F1", *_by_epoch(one.epochs, "f1_macro"), 2, "points"),
    ]
    charts = [
        Chart("", "Loss", STEPS, "cross-entropy, nats", loss),
        Chart("", "Perplexity", STEPS, "perplexity", perplexity, is_log=_spans_much(perplexity)),
        Chart("", "Learning rate", STEPS, "learning rate", _rates(one.steps)),
        Chart("", "Validation accuracy" + (" and macro-F1" if stage == "classifier" else ""), EPOCHS, "share", quality),
        _per_run("Throughput", unit_label, STEPS, ["last"], [_throughput(one, unit)]),
        Chart("", "Where the time of a step goes", STEPS, "milliseconds per step", _areas(one), is_stacked=True),
    ]
    drawn = [replace(chart, series=[line for line in chart.series if len(line.x)]) for chart in charts]
    return [chart for chart in drawn if chart.title != "Perplexity" or stage == "lm"]


def _charts_of_several(stage: str, stages: Sequence[Stage], names: Sequence[str]) -> list[Chart]:
    unit, unit_label = UNITS[stage]
    perplexity = _per_run(
        "Validation perplexity", "perplexity", STEPS, names, [series(s.epochs, "perplexity") for s in stages]
    )
    rate = _per_run("Learning rate", "learning rate", STEPS, names, [series(s.steps, "learning_rate") for s in stages])
    return [
        _per_run("Training loss", "cross-entropy, nats", STEPS, names, [series(s.steps, *TRAIN_LOSS) for s in stages]),
        _per_run("Validation loss", "cross-entropy, nats", STEPS, names, [series(s.epochs, "valid_loss") for s in stages]),
        replace(perplexity, is_log=_spans_much(perplexity.series)),
        replace(rate, series=[_with_highest(line) for line in rate.series]),
        _per_run("Validation accuracy", "share", EPOCHS, names, [_by_epoch(s.epochs, "accuracy") for s in stages]),
        _per_run("Validation macro-F1", "share", EPOCHS, names, [_by_epoch(s.epochs, "f1_macro") for s in stages]),
        _per_run("Throughput", unit_label, STEPS, names, [_throughput(s, unit) for s in stages]),
    ]


def _per_run(
    title: str, y_label: str, x_label: str, names: Sequence[str], curves: Sequence[tuple[np.ndarray, np.ndarray]]
) -> Chart:
    """Return a chart with one curve per run; metrics of epochs have markers."""
    look = "points" if title.startswith("Validation") else "line"
    lines = [
        _series(name, x, y, i % NUM_COLOURS + 1, look if i < NUM_COLOURS else "dashed")
        for i, (name, (x, y)) in enumerate(zip(names, curves, strict=True))
    ]
    drawn = [line for line in lines if len(line.x)]
    return Chart("", title, x_label, y_label, drawn, from_zero=title in FROM_ZERO)


def _series(label: str, x: np.ndarray, y: np.ndarray, colour: int, look: str = "line") -> Series:
    """Return a curve with its last value as its note."""
    finite = y[np.isfinite(y)]
    return Series(label, x, y, colour, look, _figure(float(finite[-1])) if len(finite) else "")


def _figure(value: float) -> str:
    digits = next((digits for least, digits in ((1000, 0), (100, 1), (10, 2)) if abs(value) >= least), 4)
    return f"{value:,.{digits}f}" if abs(value) < 1e9 else f"{value:.3g}"


def _rates(lines: list[Line]) -> list[Series]:
    """Return the learning rates: one curve if all layer groups have the same, else one per group; older runs have one."""
    names = sorted({name for line in lines for name in line.values if _group(name) >= 0}, key=_group)
    groups = [series(lines, name) for name in names]
    if all(np.array_equal(y, groups[-1][1], equal_nan=True) for _, y in groups):
        label = "all layer groups" if groups else "last layer group"
        return [_with_highest(_series(label, *series(lines, "learning_rate"), 1))]
    labels = [f"group {_group(name) + 1}" for name in names]
    labels[0], labels[-1] = f"{labels[0]} (first)", f"{labels[-1]} (last)"
    chosen = range(len(groups)) if len(groups) <= NUM_COLOURS else (0, len(groups) - 1)
    return [Series(labels[i], *groups[i], colour) for colour, i in enumerate(chosen, start=1)]


def _with_highest(line: Series) -> Series:
    """Return the curve with its maximum as its note, because the last value of a schedule is close to zero."""
    return replace(line, note=f"up to {np.nanmax(line.y):.3g}" if line.note else "")


def _group(name: str) -> int:
    """Return the index of the layer group of `learning_rate_<i>`; -1 for other metrics."""
    number = name.removeprefix("learning_rate_")
    return int(number) if number != name and number.isascii() and number.isdigit() and len(number) < 4 else -1


def _areas(one: Stage) -> list[Series]:
    means = step_parts(one)
    total = sum(means.values()) or 1.0
    steps = np.array([line.step for line in one.steps if "forward_seconds" in line.values], dtype=np.float64)
    areas = []
    for i, (part, label) in enumerate(PARTS.items()):
        x, y = series(one.steps, f"{part}_seconds")
        if label in means and len(steps):
            y = np.interp(steps, x, np.nan_to_num(y)) * 1e3
            areas.append(Series(label, steps, y, i + 1, "area", f"{means[label] / total:.0%}"))
    return areas


def _throughput(one: Stage, unit: str) -> tuple[np.ndarray, np.ndarray]:
    return series(one.steps, unit) if any(unit in line.values for line in one.steps) else series(one.epochs, unit)


def _by_epoch(lines: list[Line], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a metric over the number of finished epochs."""
    return series([line._replace(step=line.epoch) for line in lines], name)


def _phases(stages: Sequence[Stage], by_epoch: bool) -> list[float]:
    """Return the starts of the phases and the end of the last one; empty if they differ between runs."""
    ends: dict[int, float] = {}
    numbers = {max((line.phase for line in one.epochs), default=0) for one in stages if one.is_finished}
    if len(numbers) > 1:
        return []
    for one in stages:
        phase_ends: dict[int, float] = {}
        for line in one.epochs if by_epoch else one.lines:
            phase_ends[line.phase] = max(phase_ends.get(line.phase, 0.0), line.epoch if by_epoch else line.step)
        finished = sorted(phase_ends)[: None if one.is_finished else -1]  # the running phase has no end yet
        if any(ends.get(phase, phase_ends[phase]) != phase_ends[phase] for phase in finished):
            return []
        ends |= {phase: phase_ends[phase] for phase in finished}
    positions = [
        line.epoch + ("valid_loss" not in line.values) if by_epoch else line.step for s in stages for line in s.lines
    ]
    last = max(positions, default=0)  # the end of the running epoch
    return [0.0, *sorted({*ends.values(), float(last)})] if ends else []


def _exp(values: np.ndarray) -> np.ndarray:
    """Return the perplexity of a loss in nats per token; NaN if it is too large for a chart."""
    return np.exp(np.where(values < 60, values, np.nan))


def _spans_much(lines: Sequence[Series]) -> bool:
    values = np.concatenate([line.y[np.isfinite(line.y)] for line in lines] or [np.zeros(0)])
    return bool(len(values) and values.min() > 0 and values.max() > 10 * values.min())
