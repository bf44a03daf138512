"""Run directories as a quick start leaves them, written directly."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

LABELS = "business entertainment politics sports tech".split()
PHASES = {
    "lm": [{"epochs": 2, "lr": 0.01, "freeze_to": 0}],
    "classifier": [{"epochs": 1, "lr": 0.02, "freeze_to": -1}, {"epochs": 4, "lr": [0.001479, 0.01], "freeze_to": 0}],
}
STEPS = {"lm": 245, "classifier": 111}
"""Steps of an epoch."""
GROUPS = {"lm": 4, "classifier": 4}
SPEED = {"lm": 9700.0, "classifier": 58.0}
UNIT = {"lm": "tokens_per_second", "classifier": "examples_per_second"}
PARTS = {"data": 0.004, "forward": 0.11, "backward": 0.19, "communication": 0.02, "optimizer": 0.03, "checkpoint": 0.01}
TEXTS = ["Shares in the firm fell by a tenth on Monday.", 'The minister said the film would be "a great boost".\n' * 12]


def one_cycle(progress: float, highest: float) -> float:
    """fastai's one-cycle schedule at a point between 0 and 1."""
    if progress < 0.25:
        return highest / 25 + (highest - highest / 25) * (1 - math.cos(math.pi * progress / 0.25)) / 2
    return highest * (1 + math.cos(math.pi * (progress - 0.25) / 0.75)) / 2


def epoch_metrics(stage: str, epoch: float, gain: float) -> dict[str, float]:
    """Validation metrics that could be those of the quick start."""
    if stage == "lm":
        loss = 4.0 + 2.2 * math.exp(-1.2 * epoch) - gain
        return {"valid_loss": loss, "perplexity": math.exp(loss), "accuracy": 0.31 - 0.12 * math.exp(-epoch) + gain / 10}
    error = 0.03 + 0.22 * math.exp(-0.8 * epoch) - gain / 10
    return {"valid_loss": 3.5 * error, "accuracy": 1 - error, "f1_macro": 1 - 1.06 * error}


def stage_lines(stage: str, gain: float, speed: float) -> Iterator[dict[str, Any]]:
    """A stage's lines of metrics.jsonl."""
    rng = np.random.default_rng(len(stage))
    step, epoch, smoothed = 0, 0, 0.0
    for phase, recipe in enumerate(PHASES[stage]):
        highest = np.atleast_1d(recipe["lr"])
        highest = np.geomspace(highest[0], highest[-1], GROUPS[stage])
        num_steps = recipe["epochs"] * STEPS[stage]
        for i in range(1, num_steps + 1):
            step += 1
            position = {"stage": stage, "phase": phase, "epoch": epoch, "step": step, "tokens": step * 4608}
            loss = {"lm": 4.1 + 4.9 * math.exp(-step / 60), "classifier": 0.1 + 1.5 * math.exp(-step / 90)}[stage] - gain
            loss *= rng.normal(1, 0.02 if stage == "lm" else 0.15)
            smoothed = 0.9 * (smoothed or loss) + 0.1 * loss
            if step % 5 == 0:
                rates = [one_cycle(i / num_steps, float(high)) for high in highest]
                parts = {f"{part}_seconds": mean / speed * rng.uniform(0.8, 1.2) for part, mean in PARTS.items()}
                metrics = {
                    "loss": loss,
                    "loss_smoothed": smoothed,
                    "learning_rate": rates[-1],
                    **{f"learning_rate_{group}": rate for group, rate in enumerate(rates)},
                    "momentum": 0.8,
                    "gradient_norm": 0.4 + 1.6 * math.exp(-step / 100) * rng.uniform(0.5, 1.5),
                    UNIT[stage]: SPEED[stage] * speed * rng.uniform(0.95, 1.03),
                    "memory_gb": 1.21,
                    **parts,
                }
                yield {**position, **{f"{stage}/{name}": value for name, value in metrics.items()}}
            if i % STEPS[stage] == 0:
                epoch += 1
                position["epoch"] = epoch
                metrics = {"train_loss": loss, **epoch_metrics(stage, epoch, gain), UNIT[stage]: SPEED[stage] * speed}
                yield {**position, **{f"{stage}/{name}": value for name, value in metrics.items()}}


def make_run(
    folder: Path, gain: float = 0.0, speed: float = 1.0, stages: tuple[str, ...] = ("lm", "classifier"), **config: Any
) -> Path:
    """A run directory as a finished run leaves it."""
    folder.mkdir(parents=True)
    name = config.pop("name", folder.name)
    tree: dict[str, Any] = {"name": name, "seed": 42, "data": {"source": "bbc_news", "valid_pct": 0.2}}
    tree |= {stage: {"global_batch_size": 32, "phases": PHASES[stage], **config} for stage in PHASES}
    (folder / "config.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    lines = [line for stage in stages for line in stage_lines(stage, gain, speed)]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    summary: dict[str, Any] = {"name": name, "world_size": 2, "device": "cpu", "precision": "fp32"}
    summary["seconds"] = {"prepare": 10.6, "lm": 188.2 / speed, "classifier": 136.9 / speed}
    for stage in stages:
        num_epochs = sum(phase["epochs"] for phase in PHASES[stage])
        summary[stage] = {**epoch_metrics(stage, num_epochs, gain), UNIT[stage]: SPEED[stage] * speed}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "tables.json").write_text(json.dumps({"lm": lm_tables(), "classifier": classifier_tables(LABELS)}))
    versions = {"ulmfit-dist": "0.1.0", "python": "3.11.2", "torch": "2.13.0", "fastai": "2.8.12", "accelerate": "1.15.0"}
    command = "ulmfit-dist run configs/quickstart.yaml lm.global_batch_size=32"
    environment = {"command": command, "revision": "6ac823b0c1d4", "versions": versions, "host": "node-17"}
    (folder / "environment.json").write_text(json.dumps(environment))
    return folder


def lm_tables() -> dict[str, Any]:
    texts = ["the company said it would cut 1,200 jobs in the uk .", "the film has won three awards at the festival"]
    return {"samples": [{"epoch": epoch, "text": f"{text} after {epoch} epochs"} for epoch in (1, 2) for text in texts]}


def classifier_tables(labels: list[str], text: bool = True) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    matrix = np.diag(rng.integers(60, 110, len(labels))) + rng.integers(0, 4, (len(labels), len(labels)))
    wrong = [
        {
            "document": 17 * i,
            "label": labels[i % len(labels)],
            "predicted": labels[(i + 1) % len(labels)],
            "probability": 0.97,
            "loss": 4.2 - i / 9,
        }
        | ({"text": TEXTS[i % 2]} if text else {})
        for i in range(7)
    ]
    bins = [
        {"low": k / 15, "high": (k + 1) / 15, "documents": 9 * k, "confidence": k / 15, "accuracy": 0.9} for k in (9, 14)
    ]
    return {"labels": labels, "confusion_matrix": matrix.tolist(), "reliability": bins, "most_wrong": wrong}
