"""New columns of tables: formats, order, resumption, and two ranks."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from conftest import succeed_here
from fastai_runs import make_models
from filelock import FileLock
from killing import ranks_of, start
from made_classifiers import lettered_store, make_classifier

from ulmfit_dist import predict_file
from ulmfit_dist.cli.main import main
from ulmfit_dist.config.schema import DataConfig
from ulmfit_dist.data.input_table import BLOCK_ROWS, InputTable, open_input, table_of_texts
from ulmfit_dist.distributed.collectives import OneProcess
from ulmfit_dist.errors import UserError
from ulmfit_dist.inference.annotate import annotate_table
from ulmfit_dist.inference.annotators import Continuations, Labels
from ulmfit_dist.inference.ensemble import Ensemble
from ulmfit_dist.inference.generator import LanguageModel
from ulmfit_dist.inference.predictor import TextClassifier
from ulmfit_dist.models.sampling import Sampling

LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz"))
COLUMNS = ["predicted_label", "predicted_probability_a", "predicted_probability_b", "predicted_probability_c"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("annotate")
    return make_classifier(folder / "run", lettered_store(folder / "store"))


@pytest.fixture(scope="module")
def labels(run: Path) -> Labels:
    return Labels(TextClassifier(run))


def write_rows(path: Path, num_rows: int) -> list[str]:
    """Write a CSV of ids and texts of letters; return the texts."""
    rng = np.random.default_rng(1)
    texts = [" ".join(LETTERS[rng.integers(0, 26, rng.integers(1, 15))]) for _ in range(num_rows)]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["id", "text"], *([f"{i:06d}", text] for i, text in enumerate(texts))])
    return texts


def opened(path: Path) -> InputTable:
    return open_input(path, DataConfig(text_col=["text"]))


def read(path: Path) -> list[dict[str, Any]]:
    """Return the rows of an output."""
    if path.suffix == ".parquet":
        return pa.parquet.read_table(path).to_pylist()
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in file]
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet"])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "txt"])
def test_each_kind_of_table_becomes_each_kind_of_output(
    tmp_path: Path, run: Path, labels: Labels, kind: str, suffix: str, monkeypatch: pytest.MonkeyPatch
):
    texts = ["a b c", "", 'q "x",\ty z'] if kind != "txt" else ["a b c", "", "q x y z"]
    rows = [{"n": str(i), "text": text, "ü": "7"} for i, text in enumerate(texts)]
    source = tmp_path / f"in.{kind}"
    if kind == "csv":
        with source.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "parquet":
        pa.parquet.write_table(pa.Table.from_pylist(rows), source)
    else:
        source.write_text("".join(f"{json.dumps(row) if kind == 'jsonl' else row['text']}\n" for row in rows))
    table = opened(source)
    monkeypatch.setattr(table, "block_rows", 2)
    annotate_table(table, labels, tmp_path / f"out{suffix}", OneProcess())
    written = read(tmp_path / f"out{suffix}")
    kept = rows if kind != "txt" else [{"text": text} for text in texts]
    assert [{name: row[name] for name in kept[0]} for row in written] == kept
    assert all([*row] == [*kept[0], *COLUMNS] for row in written)
    predictions = TextClassifier(run).predict(texts)
    assert [row["predicted_label"] for row in written] == [prediction.label for prediction in predictions]
    probabilities = [[float(row[f"predicted_probability_{name}"]) for name in "abc"] for row in written]
    np.testing.assert_allclose(probabilities, [[*p.probabilities.values()] for p in predictions], rtol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == [source.name, f"out{suffix}"]


def test_values_of_parquet_keep_their_types_and_become_text_elsewhere(tmp_path: Path, labels: Labels):
    values = {"text": ["a"], "d": [date(2026, 1, 2)], "l": [[1, None]], "b": [b"\0"], "n": pa.array([3], pa.uint8())}
    pa.parquet.write_table(pa.table(values), tmp_path / "a.parquet")
    for suffix in (".parquet", ".jsonl", ".csv"):
        table = opened(tmp_path / "a.parquet")
        annotate_table(table, labels, tmp_path / f"out{suffix}", OneProcess())
    assert pa.parquet.read_table(tmp_path / "out.parquet").select([*values]).equals(pa.table(values))
    row = read(tmp_path / "out.jsonl")[0]
    assert {name: row[name] for name in values} == {"text": "a", "d": "2026-01-02", "l": [1, None], "b": "AA==", "n": 3}
    assert {name: read(tmp_path / "out.csv")[0][name] for name in ("d", "l", "n")} == {
        "d": "2026-01-02",
        "l": "[1, null]",
        "n": "3",
    }


def test_json_rows_with_other_columns_and_types_share_a_table(tmp_path: Path, labels: Labels):
    rows = [{"text": "a", "n": 1}, {"text": "b", "n": 2.5, "late": [1]}, {"text": "c", "n": None}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for suffix in (".parquet", ".csv"):
        table = opened(tmp_path / "a.jsonl")
        annotate_table(table, labels, tmp_path / f"out{suffix}", OneProcess())
    assert [row["n"] for row in read(tmp_path / "out.parquet")] == [1.0, 2.5, None]
    assert [row["late"] for row in read(tmp_path / "out.csv")] == ["", "[1]", ""]
    (tmp_path / "a.jsonl").write_text('{"text": "a", "n": 1}\n{"text": "a", "n": [1]}\n')
    with pytest.raises(UserError, match=r"values of column 'n' have several types.*\.jsonl"):
        annotate_table(opened(tmp_path / "a.jsonl"), labels, tmp_path / "o.parquet", OneProcess())


def test_a_table_without_rows_becomes_its_header(tmp_path: Path, labels: Labels):
    (tmp_path / "a.csv").write_text("id,text\n")
    for suffix in (".csv", ".parquet", ".jsonl"):
        annotate_table(opened(tmp_path / "a.csv"), labels, tmp_path / f"o{suffix}", OneProcess())
    assert (tmp_path / "o.csv").read_text() == ",".join(["id", "text", *COLUMNS]) + "\n"
    assert pa.parquet.read_table(tmp_path / "o.parquet").schema.names == ["id", "text", *COLUMNS]
    assert (tmp_path / "o.jsonl").read_text() == ""


def test_new_columns_never_replace_old_ones(tmp_path: Path, run: Path, labels: Labels):
    (tmp_path / "a.csv").write_text("text,predicted_label\na,sport\n")
    table = opened(tmp_path / "a.csv")
    with pytest.raises(UserError, match=r"has a column 'predicted_label' already: rename it, or .* --prefix"):
        annotate_table(table, labels, tmp_path / "o.csv", OneProcess())
    annotate_table(table, Labels(TextClassifier(run), "second_"), tmp_path / "o.csv", OneProcess())
    assert read(tmp_path / "o.csv")[0]["predicted_label"] == "sport"
    assert read(tmp_path / "o.csv")[0]["second_label"] in "abc"


def test_a_column_of_a_late_json_row_is_not_replaced(tmp_path: Path, labels: Labels):
    rows = [*({"text": "a"} for _ in range(1001)), {"text": "b", "predicted_label": "sport"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="a row has a column 'predicted_label' already: rename it"):
        annotate_table(opened(tmp_path / "a.jsonl"), labels, tmp_path / "o.jsonl", OneProcess())


def test_an_interrupted_job_keeps_its_blocks_and_resumes(
    tmp_path: Path, labels: Labels, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    texts, output = [*"abcdefg"], tmp_path / "o.jsonl"
    table = table_of_texts(texts)
    table.block_rows = 2
    annotate_table(table, labels, output, OneProcess())
    whole = output.read_bytes()
    output.unlink()
    computed: list[int] = []

    def fail_at_4(texts: list[str], start: int) -> Any:
        computed.append(start)
        if start == 4 and len(computed) == 3:
            raise KeyboardInterrupt
        return Labels.annotate(labels, texts, start)

    monkeypatch.setattr(labels, "annotate", fail_at_4)
    with pytest.raises(KeyboardInterrupt):
        annotate_table(table, labels, output, OneProcess())
    assert not output.exists()
    caplog.set_level("INFO", "ulmfit_dist")
    assert annotate_table(table, labels, output, OneProcess()) == 2
    assert computed == [0, 2, 4, 4, 6]
    assert output.read_bytes() == whole
    assert not (tmp_path / "o.jsonl.parts").exists()
    assert "resuming: 2 of 4 blocks" in caplog.text


def test_parts_of_another_job_are_not_used(tmp_path: Path, labels: Labels, caplog: pytest.LogCaptureFixture):
    parts = tmp_path / "o.jsonl.parts"
    parts.mkdir()
    (parts / "part-000000.jsonl").write_text('{"text": "old"}\n')
    assert annotate_table(table_of_texts(["a"]), labels, tmp_path / "o.jsonl", OneProcess()) == 0
    assert read(tmp_path / "o.jsonl")[0]["text"] == "a"
    assert "of another input, model or option: starting over" in caplog.text


def test_two_processes_cannot_write_one_output(tmp_path: Path, labels: Labels):
    (tmp_path / "o.csv.parts").mkdir()
    with FileLock(tmp_path / "o.csv.parts/.lock"), pytest.raises(UserError, match="locked by another process"):
        annotate_table(table_of_texts(["a"]), labels, tmp_path / "o.csv", OneProcess())
    assert not (tmp_path / "o.csv").exists()


def test_an_output_that_cannot_be_written_is_one_line(tmp_path: Path, labels: Labels):
    with pytest.raises(UserError, match=r"unknown ending '\.xlsx': give one of \.jsonl, \.csv, \.tsv, \.parquet"):
        annotate_table(table_of_texts(["a"]), labels, tmp_path / "o.xlsx", OneProcess())
    with pytest.raises(UserError, match="no folder"):
        annotate_table(table_of_texts(["a"]), labels, tmp_path / "no/o.csv", OneProcess())
    (tmp_path / "o.csv").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        annotate_table(table_of_texts(["a"]), labels, tmp_path / "o.csv", OneProcess())


def test_predict_file_writes_what_the_command_writes(tmp_path: Path, run: Path):
    write_rows(tmp_path / "a.csv", 3)
    predict_file(run, tmp_path / "a.csv", tmp_path / "python.csv")
    succeed_here(["predict", run, "--file", tmp_path / "a.csv", "--output", tmp_path / "command.csv"])
    assert (tmp_path / "python.csv").read_bytes() == (tmp_path / "command.csv").read_bytes()


def test_an_ensemble_adds_the_mean_of_its_members(tmp_path: Path, run: Path):
    texts = write_rows(tmp_path / "a.csv", 3)
    other = make_classifier(tmp_path / "other", lettered_store(tmp_path / "store"), seed=2)
    succeed_here(["ensemble", run, other, "--file", tmp_path / "a.csv", "--output", tmp_path / "o.jsonl"])
    expected = Ensemble([run, other]).predict_proba(texts)
    written = [[row[f"predicted_probability_{name}"] for name in "abc"] for row in read(tmp_path / "o.jsonl")]
    np.testing.assert_allclose(written, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["a text", "--file", "a.csv"], "texts on the command line and --file at once"),
        (["a text", "--text-col", "body"], "--text-col and --set are for a table: name it with --file"),
        (["a text", "--prefix", "p_"], "--prefix names the columns of a file: give --output, too"),
        (["--file", "none.csv"], "--file none.csv: no such file or folder"),
        (["--file", "a.csv", "--output", "o.doc"], "--output o.doc: unknown ending"),
        (["--file", "a.csv", "--text-col", "body"], "no column 'body'; its columns are: id, text"),
        (["--file", "a.csv", "--set", "seed=1"], "--set seed=1: expected one of data.encoding"),
        (["--file", "a.csv", "--set", "data.on_error=skip"], "each row is written, so give strict or replace"),
        (["--file", "a.csv", "--set", "data.encoding=none"], "data.encoding"),
    ],
)
def test_wrong_arguments_are_one_line(
    tmp_path: Path,
    run: Path,
    argv: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "a.csv", 1)
    assert main(["predict", str(run), *argv]) == 2
    error = capfd.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_several_processes_need_a_file_and_an_output(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("WORLD_SIZE", "2")
    write_rows(tmp_path / "a.csv", 1)
    assert main(["predict", str(run), "--file", str(tmp_path / "a.csv")]) == 2
    assert main(["predict", str(run), "a", "--output", str(tmp_path / "o.csv")]) == 2
    assert "2 processes: give --output" in (error := capfd.readouterr().err)
    assert "2 processes: give the texts with --file" in error


def test_rows_without_an_output_are_printed_in_order(tmp_path: Path, run: Path):
    texts = write_rows(tmp_path / "a.csv", 5)
    lines = succeed_here(["predict", run, "--file", tmp_path / "a.csv"]).splitlines()
    assert [line.rpartition("  ")[2] for line in lines] == [
        repr(text if len(text) <= 60 else f"{text[:57]}...") for text in texts
    ]


def test_generated_texts_do_not_depend_on_blocks(tmp_path: Path):
    make_models(tmp_path / "run")
    model = LanguageModel(tmp_path / "run")
    table = table_of_texts(["the match", "a team", "the match"])
    writer = Continuations(model, words=5, samples=2, seed=7, sampling=Sampling(), keep_lines=False)
    for number, block_rows in enumerate((1, 2, 3)):
        table.block_rows = block_rows
        annotate_table(table, writer, tmp_path / f"{number}.jsonl", OneProcess())
    rows = read(tmp_path / "0.jsonl")
    assert rows == read(tmp_path / "1.jsonl") == read(tmp_path / "2.jsonl")
    assert [*rows[0]] == ["text", "generated_text_1", "generated_text_2"]
    assert [rows[1][f"generated_text_{i}"] for i in (1, 2)] == model.generate("a team", 5, 2, 8)
    assert rows[0]["generated_text_1"] != rows[2]["generated_text_1"]  # equal prompts are different rows


def predict(run: Path, source: Path, output: Path, processes: int) -> subprocess.Popen[str]:
    """Start `predict` on several gloo ranks, with one thread each."""
    return start(["predict", run, "--file", source, "--output", output], processes, source.parent / "notes")


@pytest.mark.distributed
def test_two_killed_ranks_are_resumed_by_one_to_the_bytes_of_two(tmp_path: Path, run: Path):
    num_rows = 10 * BLOCK_ROWS
    texts = write_rows(tmp_path / "a.csv", num_rows)
    outputs = [tmp_path / f"{i}.csv" for i in range(2)]
    killed = predict(run, tmp_path / "a.csv", outputs[0], 2)
    parts = tmp_path / "0.csv.parts"
    while killed.poll() is None and len(list(parts.glob("part-*"))) < 2:
        time.sleep(0.02)
    for rank in ranks_of(killed):
        os.kill(rank, signal.SIGKILL)
    assert killed.wait(60) != 0
    done = len(list(parts.glob("part-*")))
    assert 2 <= done < 10
    for process in (predict(run, tmp_path / "a.csv", outputs[0], 1), predict(run, tmp_path / "a.csv", outputs[1], 2)):
        message = process.communicate(timeout=300)[1]
        assert process.returncode == 0, message
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    rows = read(outputs[0])
    assert [row["id"] for row in rows] == [f"{i:06d}" for i in range(num_rows)]
    assert [row["text"] for row in rows] == texts
    assert not parts.exists()


@pytest.mark.distributed
def test_a_signal_stops_it_with_the_code_that_resumes(tmp_path: Path, run: Path):
    write_rows(tmp_path / "a.csv", 20 * BLOCK_ROWS)
    process = predict(run, tmp_path / "a.csv", tmp_path / "o.csv", 1)
    while process.poll() is None and not list(tmp_path.glob("o.csv.parts/part-*")):
        time.sleep(0.02)
    process.terminate()
    message = process.communicate(timeout=60)[1]
    assert process.returncode == 85, message
    assert "stopped by SIGTERM: run the same command again to resume" in message


@pytest.mark.distributed
def test_a_damaged_row_ends_both_ranks_with_one_line(tmp_path: Path, run: Path):
    (tmp_path / "a.csv").write_text("id,text\n1,a\n2\n")
    process = predict(run, tmp_path / "a.csv", tmp_path / "o.csv", 2)
    message = process.communicate(timeout=120)[1]
    assert process.returncode == 1, message  # accelerate's own, for ranks that exit with 2
    assert "exitcode  : 2" in message
    assert message.count("line 3 has 1 fields, but the header has 2") == 1
