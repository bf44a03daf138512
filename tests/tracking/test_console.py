"""Terminal output of a run."""

import json
import re
from pathlib import Path

from ulmfit_dist.config.loading import load_config
from ulmfit_dist.config.schema import Phase
from ulmfit_dist.tracking.console import EpochTable, final_table
from ulmfit_dist.utils.formatting import duration

LINE = {
    "stage": "lm",
    "phase": 1,
    "epoch": 3,
    "step": 60,
    "lm/train_loss": 5.47881,
    "lm/valid_loss": 4.644,
    "lm/perplexity": 1103.9635,
    "lm/accuracy": 0.25149,
    "lm/tokens_per_second": 9807.4,
    "lm/epoch_seconds": 92.6,
}


def test_a_row_stands_under_its_columns():
    table = EpochTable("lm", [Phase(epochs=1), Phase(epochs=4)])
    header, row = table.header(), table.row(LINE)
    assert row.split() == ["lm", "2", "2/4", "5.4788", "4.6440", "1,103.96", "0.2515", "9,807", "1:33"]
    ends = [header.index(name) + len(name) for name in header.split()[1:]]
    assert all(row[end - 1] != " " and row[end : end + 1] in ("", " ") for end in ends)


def test_two_ranks_say_the_tables_and_where_to_look_and_nothing_else(run_dirs: dict[str, Path]):
    folder = run_dirs["caches"]
    config = load_config(run_dirs["two"] / "config.yaml")
    run = config.run_dir  # where it was made
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    printed = (folder / "two.out").read_text().splitlines()
    steps = {line["stage"]: line["step"] for line in lines}
    assert printed[0] == "plan of two: 2 processes, cpu, fp32"
    assert [[*row.split()[:3], row.split()[4]] for row in printed[2:4]] == [
        ["lm", "2", str(steps["lm"]), "seconds"],
        ["classifier", "6", str(steps["classifier"]), "seconds"],
    ]
    assert printed[4] == ""
    expected = []
    for stage, settings in (("lm", config.lm), ("classifier", config.classifier)):
        table = EpochTable(stage, settings.phases)
        expected += [table.header(), *(table.row(line) for line in lines if f"{stage}/valid_loss" in line), ""]
    run_id = (run / "wandb/run_id").read_text()
    (path,) = (run / "wandb").glob(f"offline-run-*-{run_id}")
    expected += [*final_table(json.loads((run / "summary.json").read_text())), "", f"report: {run}/report.html"]
    expected += [f"W&B is offline: send it with: wandb sync {run}/wandb/offline-run-*-{run_id}"]
    expected += [f"view the run in the terminal: wandb beta leet {path}"]
    assert printed[5:] == expected
    progress = re.compile(r"(lm|classifier|tokenizing|evaluating)[^:]*: [\d,]+ of [\d,]+, .* elapsed, .* left.*")
    assert [line for line in (folder / "two.err").read_text().splitlines() if not progress.fullmatch(line)] == []


def test_an_older_line_has_empty_cells():
    assert EpochTable("lm", []).row({"stage": "lm", "phase": 0, "epoch": 1}).split() == ["lm", "1", "1"]


def test_the_final_table_is_what_summary_json_says():
    figures = {"valid_loss": 0.13453, "accuracy": 0.9618, "f1_macro": 0.95991, "examples_per_second": 57.2}
    seconds = {"prepare": 5.0, "lm": 3725.2, "classifier": 137.0}
    summary = {"name": "a", "world_size": 2, "device": "cpu", "precision": "fp32", "seconds": seconds, "classifier": figures}
    first, header, *rows = final_table(summary)
    assert first == "a: 2 processes, cpu, fp32"
    assert [row.split() for row in rows] == [
        ["prepare", "0:05"],
        ["lm", "1:02:05"],
        ["classifier", "0.1345", "0.9618", "0.9599", "57", "examples", "2:17"],
    ]
    assert {len(line) for line in (header, *rows)} == {len(header)}


def test_durations_are_read_as_on_a_clock():
    assert [duration(seconds) for seconds in (None, 0, 59.6, 3599, 3600, 100_000)] == [
        "",
        "0:00",
        "1:00",
        "59:59",
        "1:00:00",
        "27:46:40",
    ]
