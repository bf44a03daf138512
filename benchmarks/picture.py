"""The picture of the README: accuracy by number of labels, loss on one, two and four ranks, and the report of a run.

    python -m benchmarks.picture RUN_ON_1 RUN_ON_2 RUN_ON_4 REPORT.png docs/images/overview.png

The first panel reads benchmarks/results/few_labels.txt; the second reads metrics.jsonl of three runs of one config; the
third shows a screenshot of a run's report.html.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[1]
BLUE, ORANGE, GREEN, GRAY = "#2a6fbb", "#d9822b", "#3a8f5c", "#5f6b7a"
METHODS = (
    ("with-linear", "classifier and linear model, mean", BLUE),
    ("supervised", "classifier, language model from scratch", GREEN),
    ("linear", "TF-IDF, linear", ORANGE),
)
"""Methods of the results, with the names and colours of their lines."""
WINDOW = 10
"""Steps that a point of the loss is the mean of."""


def draw_labels(axes: Any) -> None:
    """Draw the accuracy of each method, with its 95 % interval, by the number of labels."""
    lines = (ROOT / "benchmarks/results/few_labels.txt").read_text().splitlines()
    rows = [line.split() for line in lines if line.strip()[:1].isdigit()]
    for method, name, color in METHODS:
        points = sorted((int(row[0]), *map(float, row[2:5])) for row in rows if row[1] == method)
        labels, values, lows, highs = (list(column) for column in zip(*points, strict=True))
        axes.plot(labels, values, "o-", color=color, label=name, markersize=4)
        axes.fill_between(labels, lows, highs, color=color, alpha=0.15)
    axes.set(xscale="log", xlabel="labelled reviews", ylabel="test accuracy", title="IMDb: accuracy by number of labels")
    axes.set_xticks(labels, [f"{int(number):,}" for number in labels])
    axes.minorticks_off()
    axes.legend(frameon=False, loc="lower right")


def draw_ranks(axes: Any, runs: list[Path]) -> None:
    """Draw the training loss of the same config on one, two and four ranks, thinner for more ranks."""
    styles = ((6.0, "#b9d3ee"), (3.0, BLUE), (1.0, "black"))
    for run, ranks, (width, color) in zip(runs, ("1 rank", "2 ranks", "4 ranks"), styles, strict=True):
        lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        points = [(line["step"], line["lm/loss"]) for line in lines if "lm/loss" in line]
        starts = range(0, len(points) - WINDOW + 1, WINDOW)
        means = [sum(loss for _, loss in points[i : i + WINDOW]) / WINDOW for i in starts]
        axes.plot([points[i][0] for i in starts], means, color=color, linewidth=width, label=ranks)
    axes.set(xlabel="step", ylabel="training loss", title="The same model on 1, 2 and 4 ranks")
    axes.legend(frameon=False)


def main() -> None:
    """Draw the three panels and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", metavar="RUN", type=Path, nargs=3)
    parser.add_argument("report", metavar="REPORT.png", type=Path)
    parser.add_argument("output", metavar="OUTPUT.png", type=Path)
    args = parser.parse_args()
    plt.rcParams |= {"font.size": 9, "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False}
    figure, (labels, ranks, report) = plt.subplots(1, 3, figsize=(14, 3.9), width_ratios=[1, 1, 1.15], layout="constrained")
    figure.patch.set_facecolor("white")
    draw_labels(labels)
    draw_ranks(ranks, args.runs)
    report.imshow(plt.imread(args.report))
    report.set_title("The report of a run")
    report.set(xticks=[], yticks=[])
    for spine in report.spines.values():
        spine.set(visible=True, color=GRAY, linewidth=0.5)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output, dpi=110)


if __name__ == "__main__":
    main()
