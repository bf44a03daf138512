"""Comparison of runs: figures against reference code, coverage of intervals, and invalid input."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import scipy.stats
from conftest import command_here, succeed_here
from made_predictions import one_hot, right_on, write_answers
from made_runs import make_run
from sklearn.metrics import f1_score, r2_score

import ulmfit_dist
from ulmfit_dist.cli.parser import parse
from ulmfit_dist.data import prediction_table
from ulmfit_dist.data.prediction_table import read_predictions
from ulmfit_dist.errors import UserError
from ulmfit_dist.metrics.paired import compare_answers
from ulmfit_dist.report.page import write_report
from ulmfit_dist.report.paired_runs import conclude, shown
from ulmfit_dist.stages.compare import compare
from ulmfit_dist.stages.compare_seeds import name_side, welch_interval

N = 120
LABELS = [("a", "b", "c")[i % 3] for i in range(N)]


def share(number: int, of: int = N) -> list[bool]:
    """Return True for the first `number` documents."""
    return [i < number for i in range(of)]


def make_pair(folder: Path, first: list[bool], second: list[bool]) -> tuple[Path, Path]:
    runs = [write_answers(folder / name, LABELS, right_on(LABELS, right)) for name, right in (("A", first), ("B", second))]
    return runs[0], runs[1]


def resampled(difference: Callable[[np.ndarray], float], number: int) -> list[float]:
    """Return the middle 95 % of differences, with documents drawn one by one."""
    rng = np.random.default_rng(5)
    return np.percentile([difference(rng.integers(0, number, number)) for _ in range(1000)], [2.5, 97.5]).tolist()


def test_figures_of_one_class_each_are_those_of_other_code():
    rng = np.random.default_rng(0)
    y_N = rng.integers(0, 4, 300)
    first_N, second_N = (np.where(rng.random(300) < p, y_N, rng.integers(0, 4, 300)) for p in (0.6, 0.7))
    actual = compare_answers(np.eye(4)[first_N], np.eye(4)[second_N], y_N, "category")
    accuracy, f1 = actual.differences["accuracy"], actual.differences["f1_macro"]
    right_first, right_second = first_N == y_N, second_N == y_N
    assert accuracy[:3] == pytest.approx([right_first.mean(), right_second.mean(), right_second.mean() - right_first.mean()])
    macro = [f1_score(y_N, said_N, average="macro") for said_N in (first_N, second_N)]
    assert f1[:3] == pytest.approx([*macro, macro[1] - macro[0]])
    assert accuracy[3:] == pytest.approx(
        resampled(lambda rows: right_second[rows].mean() - right_first[rows].mean(), 300), abs=0.012
    )

    interval = resampled(lambda rows: macro_f1(y_N[rows], second_N[rows]) - macro_f1(y_N[rows], first_N[rows]), 300)
    assert f1[3:] == pytest.approx(interval, abs=0.012)
    first_only, second_only = int((right_first & ~right_second).sum()), int((right_second & ~right_first).sum())
    assert (actual.test.first_better, actual.test.second_better) == (first_only, second_only)
    tail = sum(math.comb(first_only + second_only, k) for k in range(min(first_only, second_only) + 1))
    assert actual.test.p == pytest.approx(min(1, 2 * tail / 2 ** (first_only + second_only)))


def macro_f1(y_N: np.ndarray, said_N: np.ndarray) -> float:
    """Return scikit-learn's macro-F1, a hundred times faster."""
    hits_C = np.bincount(y_N[y_N == said_N], minlength=4)
    return float((2 * hits_C / (np.bincount(y_N, minlength=4) + np.bincount(said_N, minlength=4))).mean())


def test_figures_of_several_classes_are_those_of_other_code():
    rng = np.random.default_rng(0)
    y_NC = rng.random((200, 3)) < 0.4
    first_NC, second_NC = (np.clip(y_NC * p + rng.random((200, 3)) * 0.6, 0, 1) for p in (0.3, 0.5))
    actual = compare_answers(first_NC, second_NC, y_NC, "multicategory", (0.5, 0.6))
    output = first_NC > 0.5, second_NC > 0.6
    exact = [(said_NC == y_NC).all(1) for said_NC in output]
    expected = {
        "accuracy": [(said_NC == y_NC).mean() for said_NC in output],
        "f1_macro": [f1_score(y_NC, said_NC, average="macro") for said_NC in output],
        "f1_micro": [f1_score(y_NC, said_NC, average="micro") for said_NC in output],
        "exact_match": [right.mean() for right in exact],
    }
    assert actual.differences.keys() == expected.keys()
    for name, (one, other) in expected.items():
        assert actual.differences[name][:3] == pytest.approx([one, other, other - one])
    interval = resampled(lambda rows: exact[1][rows].mean() - exact[0][rows].mean(), 200)
    assert actual.differences["exact_match"][3:] == pytest.approx(interval, abs=0.015)
    discordant = int((exact[0] != exact[1]).sum())
    assert actual.test.p == pytest.approx(scipy.stats.binomtest(int((exact[0] & ~exact[1]).sum()), discordant).pvalue)
    assert actual.tested == "exact_match"


def test_figures_of_numbers_are_those_of_other_code():
    rng = np.random.default_rng(0)
    y_N = rng.normal(size=200)
    first_N, second_N = y_N + rng.normal(size=200), y_N + 0.7 * rng.normal(size=200)
    actual = compare_answers(first_N[:, None], second_N[:, None], y_N, "regression")
    errors = [np.abs(said_N - y_N) for said_N in (first_N, second_N)]
    expected = {
        "rmse": [np.sqrt((error**2).mean()) for error in errors],
        "mae": [error.mean() for error in errors],
        "r2": [r2_score(y_N, said_N) for said_N in (first_N, second_N)],
    }
    for name, (one, other) in expected.items():
        assert actual.differences[name][:3] == pytest.approx([one, other, other - one])
    interval = resampled(lambda rows: errors[1][rows].mean() - errors[0][rows].mean(), 200)
    assert actual.differences["mae"][3:] == pytest.approx(interval, abs=0.02)
    assert actual.test.p == pytest.approx(scipy.stats.wilcoxon(errors[0], errors[1]).pvalue)
    assert actual.test.second_better == (errors[1] < errors[0]).sum()
    assert "Wilcoxon" in actual.test.name


def test_the_interval_of_a_difference_holds_the_true_one_about_nineteen_times_in_twenty():
    rng, held, num_runs = np.random.default_rng(0), 0, 100
    for _ in range(num_runs):
        y_N = rng.integers(0, 2, 200)
        hard_N = rng.random(200)  # of both: a pair goes together
        output = [np.where(0.7 * hard_N + 0.3 * rng.random(200) < p, y_N, 1 - y_N) for p in (0.60, 0.66)]
        _, _, _, low, high = compare_answers(np.eye(2)[output[0]], np.eye(2)[output[1]], y_N, "category").differences[
            "accuracy"
        ]
        held += low <= true_difference() <= high
    assert 0.88 <= held / num_runs <= 0.99


def true_difference() -> float:
    """Return the true difference of accuracies: probabilities that a sum of two uniform numbers is below 0.66 and 0.60."""

    def below(p: float) -> float:  # hard is uniform in [0, 0.7], the rest in [0, 0.3]; p is between the two
        return (p - 0.15) / 0.7

    return below(0.66) - below(0.60)


def test_a_pair_has_a_narrower_interval_than_two_runs_apart():
    y_N = np.zeros(500, dtype=int)
    first_N, second_N = np.array(share(350, 500)), np.array(share(360, 500))
    pair = compare_answers(np.eye(2)[1 - first_N], np.eye(2)[1 - second_N], y_N, "category").differences["accuracy"]
    assert pair.low > 0  # ten documents more are right, and none fewer
    apart = 1.96 * math.sqrt(0.7 * 0.3 / 500 + 0.72 * 0.28 / 500)
    assert pair.high - pair.low < apart / 2


def test_compare_prints_both_runs_their_difference_and_what_can_be_concluded(tmp_path: Path):
    make_pair(tmp_path, share(80), share(100))
    lines = succeed_here(["compare", "A", "B"], cwd=tmp_path).splitlines()
    assert lines[0] == "test: 120 documents, the same in both"
    assert lines[1].split() == ["accuracy", "f1_macro"]
    assert lines[2].split()[:2] == ["A", "0.6667"]
    assert lines[3].split()[:2] == ["B", "0.8333"]
    assert lines[4].split()[:2] == ["difference", "+0.1667"]
    assert lines[6] == "McNemar's exact test (accuracy): only A is correct on 0, only B is correct on 20; p < 0.0001"
    low, high = compare(tmp_path / "A", tmp_path / "B")["metrics"]["accuracy"]["interval"]
    assert lines[7:] == [f"B is better by 0.1667 in accuracy ({low:.4f} to {high:.4f})"]
    mirrored = succeed_here(["compare", "B", "A"], cwd=tmp_path).splitlines()
    assert mirrored[4].split()[:2] == ["difference", "-0.1667"]
    assert mirrored[-1].startswith("B is better by 0.1667 in accuracy (0.")


def test_json_has_the_figures_and_the_same_each_time(tmp_path: Path):
    first, second = make_pair(tmp_path, share(80), share(83))
    actual = json.loads(succeed_here(["compare", "--json", first, second]))
    assert (
        actual == json.loads(succeed_here(["compare", first, "--json", second])) == ulmfit_dist.compare(first, str(second))
    )
    assert (actual["split"], actual["num_documents"]) == ("test", N)
    assert actual["metrics"]["accuracy"]["difference"] == pytest.approx(3 / N)
    assert actual["test"] == {
        "name": "McNemar's exact test",
        "metric": "accuracy",
        "first_better": 0,
        "second_better": 3,
        "p": 0.25,
    }
    assert actual["conclusion"].startswith("the difference of 0.0250 in accuracy may be chance (0.0000 to 0.0583")


def test_a_difference_of_few_documents_is_not_called_better_though_its_interval_leaves_out_zero(tmp_path: Path):
    actual = compare(*make_pair(tmp_path, share(80), share(85)))  # 5 of 5: p = 2 / 2**5
    assert actual["metrics"]["accuracy"]["interval"][0] > 0
    assert actual["conclusion"].startswith("the difference of 0.0417 in accuracy may be chance (")
    assert actual["conclusion"].endswith("but p = 0.0625)")


def test_runs_that_are_right_on_the_same_documents_do_not_differ(tmp_path: Path):
    actual = compare(*make_pair(tmp_path, share(80), share(80)))
    assert actual["test"]["p"] == 1
    assert actual["conclusion"].startswith("no difference in accuracy: ")


@pytest.mark.parametrize(
    ("metric", "difference", "interval", "p", "expected"),
    [
        ("mae", -0.2, (-0.3, -0.1), 0.001, "B is better by 0.2000 in mae (0.1000 to 0.3000)"),
        ("mae", 0.2, (0.1, 0.3), 0.001, "A is better by 0.2000 in mae (0.1000 to 0.3000)"),
        ("accuracy", 0.003, (-0.004, 0.01), 0.4, "the difference of 0.0030 in accuracy may be chance (-0.0040 to 0.0100)"),
        (
            "mae",
            -0.1,
            (-0.3, 0.1),
            0.01,
            "the difference of -0.1000 in mae may be chance (-0.3000 to 0.1000, although p = 0.0100)",
        ),
        ("accuracy", -0.02, (-0.03, -0.01), None, "A is better by 0.0200 in accuracy (0.0100 to 0.0300)"),
    ],
)
def test_conclusions(metric: str, difference: float, interval: tuple[float, float], p: float | None, expected: str):
    assert conclude(metric, "A", "B", difference, interval, p) == expected


@pytest.mark.parametrize(("value", "text"), [(0.5, "0.5000"), (-1e-17, "0.0000"), (3e-5, "3.0e-05"), (12345.678, "12346")])
def test_figures_as_text(value: float, text: str):
    assert shown(value) == text


def test_validation_documents_are_named_as_such(tmp_path: Path):
    for name, right in (("A", 80), ("B", 100)):
        write_answers(tmp_path / name, LABELS, right_on(LABELS, share(right)), split="valid")
    output = succeed_here(["compare", tmp_path / "A", tmp_path / "B"])
    assert output.startswith("valid: 120 documents, the same in both (no labelled test split: ")


def test_the_same_texts_are_the_same_whatever_else_the_stores_hold(tmp_path: Path):
    """Another tokenizer, or more training texts, gives another token store."""
    first = write_answers(tmp_path / "A", LABELS, right_on(LABELS, share(80)))
    second = write_answers(tmp_path / "B", LABELS, right_on(LABELS, share(100)), num_others=37)
    assert compare(first, second)["num_documents"] == N
    other = write_answers(tmp_path / "C", LABELS, right_on(LABELS, share(100)), hashes=np.arange(N)[::-1])
    with pytest.raises(
        UserError, match=r"C was evaluated on other test documents \(120\) than .*A \(120\), or in another order"
    ):
        compare(first, other)


def test_several_classes_and_numbers_through_the_files(tmp_path: Path):
    labels = [("x", "x;y", "y;z")[i % 3] for i in range(60)]
    y_NC = np.array([[name in label for name in "xyz"] for label in labels])
    good, bad = np.where(y_NC, 0.7, 0.1), np.where(y_NC, 0.7, 0.55)
    runs = [
        write_answers(tmp_path / name, labels, answers_NC, "multicategory", threshold=threshold)
        for name, answers_NC, threshold in (("A", bad, 0.5), ("B", good, 0.5), ("C", bad, 0.6))
    ]
    metrics = compare(runs[0], runs[1])["metrics"]
    assert (metrics["exact_match"]["first"], metrics["exact_match"]["second"]) == (0, 1)
    assert compare(runs[1], runs[2])["conclusion"].startswith("no difference in exact_match")  # each has its own threshold
    numbers = [str(i % 7) for i in range(60)]
    y_N1 = np.array(numbers, dtype=float)[:, None]
    near, far = (write_answers(tmp_path / str(off), numbers, y_N1 + off, "regression") for off in (0.1, 0.5))
    actual = compare(far, near)
    assert actual["metrics"]["mae"]["difference"] == pytest.approx(-0.4)
    assert actual["conclusion"] == f"{near} is better by 0.4000 in mae (0.4000 to 0.4000)"
    assert "has the smaller error on 60" in succeed_here(["compare", far, near])


def refused(words: list[object], message: str) -> None:
    result = command_here(["compare", *words])
    assert result.returncode == 2, result.stdout + result.stderr
    (line,) = result.stderr.splitlines()
    assert message in line


def test_what_cannot_be_compared_is_one_line(tmp_path: Path):
    first = write_answers(tmp_path / "A", LABELS, right_on(LABELS, share(80)))
    others = LABELS[1:] + LABELS[:1]
    cases: dict[str, tuple[Path, str]] = {
        "labels": (
            write_answers(tmp_path / "labels", others, right_on(others, share(80))),
            "for 120 of the 120 test documents",
        ),
        "classes": (
            write_answers(tmp_path / "classes", ["a", "b"] * 60, right_on(["a", "b"] * 60, share(80))),
            "has other labels (a, b) than",
        ),
        "target": (
            write_answers(tmp_path / "target", ["1", "2"] * 60, np.ones((N, 1)), "regression"),
            "classifier.target=regression",
        ),
        "fewer": (write_answers(tmp_path / "fewer", LABELS[:60], right_on(LABELS[:60], share(40, 60))), "(60) than"),
        "valid": (
            write_answers(tmp_path / "valid", LABELS, right_on(LABELS, share(80)), split="valid"),
            "has no figures on a test split",
        ),
        "unfinished": (
            make_run(tmp_path / "unfinished"),
            "no predictions.parquet in it: finish the run with 'ulmfit-dist run",
        ),
        "nowhere": (tmp_path / "nowhere", "no such folder: name a run directory"),
    }
    (tmp_path / "empty").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").touch()
    cases["empty"] = tmp_path / "empty", "not a run directory (no predictions.parquet in it)"
    cases["model"] = (
        tmp_path / "model",
        f"an exported model, which has no predictions.parquet: name the run directory, {tmp_path}",
    )
    cases["file"] = tmp_path / "A" / "config.yaml", "no such folder"
    cases["itself"] = first, "is given twice"
    for other, message in cases.values():
        refused([first, other], message)
    refused([], "0 run(s) and no '--'")
    refused([first], "'ulmfit-dist compare A B', or two groups of runs, 'ulmfit-dist compare A-1 A-2 -- B-1 B-2'")
    refused([first, "B", "C"], "3 run(s) and no '--' between two groups: compare two runs, 'ulmfit-dist compare A B', or")
    refused([first, "--"], "no run on one side of the comparison")
    refused(["--", first, "--", "B"], "'--' is given twice")
    refused([first, "B", "--frsh"], "unrecognized arguments: --frsh")
    refused([first, "--", "B", "--frsh"], "unrecognized arguments: --frsh")


def test_a_damaged_file_is_one_line_whatever_is_damaged(tmp_path: Path):
    run = write_answers(tmp_path / "A", LABELS, right_on(LABELS, share(80)))
    path, rng = run / "predictions.parquet", np.random.default_rng(0)
    content, messages = path.read_bytes(), []
    for i in range(300):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), rng.integers(1, 20)):
            damaged[place] = rng.integers(0, 256)
        path.write_bytes(damaged[: rng.integers(0, len(content))] if i % 10 == 0 else damaged)
        try:
            read_predictions(run)
        except UserError as error:
            messages.append(str(error))
    assert len(messages) > 100
    assert all("damaged, or not written by this version" in message and message.isprintable() for message in messages)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda table: table.replace_schema_metadata({}),
            "metadata without labels, target, threshold, label_delim, texts",
        ),
        (lambda table: with_metadata(table, "labels", '["a", "b"]'), "without 2 probabilities"),
        (lambda table: with_metadata(table, "labels", '["a", "b", "b"]'), "do not match the target"),
        (lambda table: with_metadata(table, "labels", "[" * 100_000), ""),
        (lambda table: with_metadata(table, "target", '["category"]'), "unknown target"),
        (lambda table: with_metadata(table, "threshold", "NaN"), "threshold is not a probability"),
        (lambda table: with_metadata(table, "texts", '"x"'), "texts are not digests"),
        (lambda table: with_metadata(table, "texts", '{"valid": "x"}'), "no documents of the split valid"),
        (lambda table: with_metadata(table, "texts", "{}"), "documents of unknown splits"),
        (lambda table: table.drop_columns("label"), "label"),
        (lambda table: with_column(table, "label", ["a"] * (N - 1) + [None]), "missing values"),
        (lambda table: with_column(table, "label", ["a"] * (N - 1) + ["\x1b[31m"]), "labels outside the classes"),
        (lambda table: with_column(table, "probabilities", [[0.5, 0.5, math.nan]] * N), "probabilities outside 0 to 1"),
        (lambda table: with_column(table, "probabilities", [[0.5, 0.5, None]] * N), "missing probabilities"),
        (lambda table: with_column(table, "probabilities", [[0.5] * 3] * (N - 1) + [[0.5]]), "without 3 probabilities"),
        (lambda table: with_column(table, "probabilities", ["x"] * N), ""),
    ],
)
def test_a_file_that_is_not_as_it_should_be_is_refused(tmp_path: Path, change: Callable[[pa.Table], pa.Table], reason: str):
    run = write_answers(tmp_path / "A", LABELS, right_on(LABELS, share(80)))
    path = run / "predictions.parquet"
    pa.parquet.write_table(change(pa.parquet.read_table(path)), path)
    result = command_here(["compare", run, tmp_path])
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "damaged, or not written by this version (" in line
    assert reason in line
    assert line.isprintable()


def with_metadata(table: pa.Table, key: str, value: str) -> pa.Table:
    return table.replace_schema_metadata({**table.schema.metadata, key.encode(): value.encode()})


def with_column(table: pa.Table, name: str, values: list[object]) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, pa.array(values))


def test_a_small_file_of_very_many_rows_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prediction_table, "MOST_VALUES", 2**20)
    run = write_answers(tmp_path / "A", LABELS, right_on(LABELS, share(80)))
    path = run / "predictions.parquet"
    schema = pa.parquet.read_schema(path)
    rows = {name: pa.nulls(2**20, schema.field(name).type) for name in schema.names}
    pa.parquet.write_table(pa.table(rows, schema=schema), path)
    assert path.stat().st_size < 2**14
    with pytest.raises(UserError, match="too many rows"):
        read_predictions(run)


def make_seeds(folder: Path, side: str, numbers: list[int], **others: object) -> list[Path]:
    return [
        write_answers(folder / f"{side}-{i}", LABELS, right_on(LABELS, share(number)), **others)  # type: ignore[arg-type]
        for i, number in enumerate(numbers, 1)
    ]


def test_seeds_are_compared_by_mean_and_spread_with_welchs_interval(tmp_path: Path):
    first, second = make_seeds(tmp_path, "A", [80, 84, 85]), make_seeds(tmp_path, "B", [95, 96, 99, 94])
    actual = json.loads(succeed_here(["compare", *first, "--", *second, "--json"]))
    assert actual == ulmfit_dist.compare(first, second)
    a, b = np.array([80, 84, 85]) / N, np.array([95, 96, 99, 94]) / N
    accuracy = actual["metrics"]["accuracy"]
    assert accuracy["first"] == {"mean": pytest.approx(a.mean()), "std": pytest.approx(a.std(ddof=1)), "values": a.tolist()}
    assert accuracy["second"]["std"] == pytest.approx(b.std(ddof=1))
    parts = a.var(ddof=1) / 3, b.var(ddof=1) / 4
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 2 + parts[1] ** 2 / 3)  # Welch & Satterthwaite
    half = scipy.stats.t.ppf(0.975, freedom) * math.sqrt(sum(parts))
    difference = b.mean() - a.mean()
    assert accuracy["difference"] == pytest.approx(difference)
    assert accuracy["interval"] == pytest.approx([difference - half, difference + half])
    lines = succeed_here(["compare", *(f"A-{i}" for i in (1, 2, 3)), "--", *(f"B-{i}" for i in (1, 2, 3, 4))], cwd=tmp_path)
    assert lines.splitlines()[0] == "test: mean ± sample standard deviation over runs, n = 3 and 4"
    assert lines.splitlines()[2].split()[:4] == ["A-*", f"{a.mean():.4f}", "±", f"{a.std(ddof=1):.4f}"]
    assert lines.splitlines()[-1].startswith(f"B-* is better by {difference:.4f} in accuracy (")


def test_one_seed_has_no_spread_and_the_output_says_so(tmp_path: Path):
    first, second = make_seeds(tmp_path, "A", [80]), make_seeds(tmp_path, "B", [95, 96])
    output = succeed_here(["compare", *first, "--", *second])
    assert f"{first[0]} is a single run: without a standard deviation, the difference has no interval" in output
    assert output.splitlines()[-1].endswith("in accuracy has no interval: a single run has no standard deviation")
    actual = compare(first, second)["metrics"]["accuracy"]
    assert (actual["first"]["std"], actual["interval"]) == (None, None)
    assert "±" not in output.splitlines()[2]
    assert compare(make_seeds(tmp_path, "C", [90, 90]), make_seeds(tmp_path, "D", [95, 95]))["conclusion"].endswith(
        "has no interval: the runs of each side have equal figures"
    )


def test_seeds_on_other_documents(tmp_path: Path):
    first, second = make_seeds(tmp_path, "A", [80, 82]), make_seeds(tmp_path, "B", [95, 96], hashes=np.arange(N) + 1)
    refused([*first, "--", *second], "B-1 was evaluated on other test documents or labels than")
    refused([first[0], "--", first[1], first[0]], "is given twice")
    cut = [np.arange(N) + 1000 * seed for seed in (1, 2)]
    sides = [
        [
            write_answers(tmp_path / f"{side}-{i}", LABELS, right_on(LABELS, share(80 + i)), split="valid", hashes=hashes)
            for i, hashes in enumerate(cut)
        ]
        for side in ("V", "W")
    ]
    (remark,) = compare(*sides)["remarks"]
    assert remark.startswith("the runs were validated on different documents (the same ones in both groups)")


def test_welchs_interval_holds_the_true_difference_nineteen_times_in_twenty():
    rng, held = np.random.default_rng(0), 0
    for _ in range(400):
        actual = welch_interval(rng.normal(0, 1, 4).tolist(), rng.normal(0.5, 3, 5).tolist())
        assert actual is not None
        held += actual[0] <= 0.5 <= actual[1]
    assert 0.92 <= held / 400 <= 0.98


def test_two_dashes_stand_between_two_sides():
    args = parse(["compare", "A-1", "A-2", "--json", "--", "B-1"])
    assert (args.runs, args.against, args.json) == ([Path("A-1"), Path("A-2")], [Path("B-1")], True)
    args = parse(["compare", "A", "B"])
    assert (args.runs, args.against, args.json) == ([Path("A"), Path("B")], None, False)
    assert parse(["predict", "RUN", "--", "--not-an-option"]).texts == ["--not-an-option"]


@pytest.mark.parametrize(
    ("runs", "name"),
    [
        (["runs/a-1", "runs/a-2"], "runs/a-*"),
        (["runs/a", "runs/b", "runs/c"], "runs/a and 2 more"),
        (["a"], "a"),
        (["a", "b"], "a and 1 more"),
    ],
)
def test_a_side_has_a_name(runs: list[str], name: str):
    assert name_side(runs) == name


def test_the_report_compares_each_run_with_the_first(tmp_path: Path):
    runs = [make_run(tmp_path / name, stages=()) for name in ("one", "two", "three", "<b>four")]
    for run, right in zip(runs[:2], (80, 100), strict=True):
        write_answers(run, LABELS, right_on(LABELS, share(right)))
    write_answers(runs[3], ["<i>", "b", "c"] * 40, one_hot(["<i>"] * N, ["<i>", "b", "c"]))
    html = write_report(runs, tmp_path / "report.html").read_text()
    section = html.split("Compared on the same documents")[1].split("Loss is cross-entropy")[0]
    low, high = compare(runs[0], runs[1])["metrics"]["accuracy"]["interval"]
    for cell in ("0.6667", "0.8333", "0.1667", f"{low:.4f} to {high:.4f}", "p &lt; 0.0001"):
        assert f"<td>{cell}</td>" in section
    assert "two is better by 0.1667 in accuracy" in section
    assert section.count('class="remark"') == 2
    assert f"is not compared: {runs[2]}: no predictions.parquet in it: finish the run" in section
    assert "has other labels (&lt;i&gt;, b, c) than" in section
    assert "<i>" not in section
    assert write_report(runs, tmp_path / "again.html").read_bytes() == (tmp_path / "report.html").read_bytes()
    assert "Compared on the same documents" not in write_report(runs[:1], tmp_path / "single.html").read_text()


def test_nothing_can_be_compared_with_a_first_run_without_predictions(tmp_path: Path):
    runs = [make_run(tmp_path / name, stages=()) for name in ("one", "two")]
    write_answers(runs[1], LABELS, right_on(LABELS, share(80)))
    html = write_report(runs, tmp_path / "report.html").read_text()
    assert f"is not compared: {runs[0]}: no predictions.parquet in it" in html
    assert '<table class="pair">' not in html
