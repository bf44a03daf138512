"""Fuzz test of file readers: each file with seeded faults is read correctly, or refused in one line that names the file.

    python -m benchmarks.data_mutations [--count 2000] [--seed 0] [--output FILE]

Small CSV, TSV, JSON-lines and Parquet files get up to four mutations each: bytes, quotes, encodings, line ends, truncation,
repeated parts, values of different types. The texts are compared with those of pandas with the same options, and rows are
read again one by one. The report counts, by file format: read as by pandas, read although pandas refuses, read differently
from pandas, refused in one line, and failed (another exception, a line without the file's name, several lines, or more than
`SECONDS`). pandas pads rows that are too short, while `skip` drops them; it reads NUL as a character, and a carriage return
as the end of a row. Exit code: 1 if any file has failed, else 0.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pandas  # type: ignore[import-untyped]
import pyarrow
import pyarrow.parquet

from ulmfit_dist.config.loading import load_config
from ulmfit_dist.config.schema import DataConfig
from ulmfit_dist.data.sources import open_source
from ulmfit_dist.data.sources.line_stream import LineStream
from ulmfit_dist.errors import UserError

KINDS = ("csv", "tsv", "json", "parquet")
SECONDS = 10.0
"""Time limit per file, in seconds."""
RESULTS = ("as pandas", "pandas refuses", "otherwise", "refused", "failed")
NUM_ROWS = 30
INSERTED = (
    b'"',
    b"'",
    b'""',
    b",",
    b"\n",
    b"\r",
    b"\t",
    b";",
    b"\0",
    b"\xef\xbb\xbf",
    b"[",
    b"{",
    b"}",
    b"NaN",
    b"\xff\xfe",
)
ENCODINGS = ("utf-16", "utf-8-sig", "cp1252", "utf-16-le", "utf-32")
VALUES = (b"null", b"-1", b"1.5", b'{"x":1}', b"[1,2]", b"true")


@dataclass(frozen=True)
class Outcome:
    """Result of one file: one of `RESULTS`, and the difference or the error."""

    kind: str
    result: str
    detail: str = ""


def make_file(kind: str, rng: random.Random, folder: Path) -> bytes:
    """Return the content of a valid file of this format."""
    rows = [(f'the {rng.choice(("good", "bad"))} "lamp", nr {i} ü', "ab"[i % 2]) for i in range(NUM_ROWS)]
    if kind == "csv":
        text = io.StringIO(newline="")
        csv.writer(text).writerows([("text", "label"), *rows])
        return text.getvalue().encode()
    if kind == "tsv":
        return ("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows)).encode()
    if kind == "json":
        is_ascii = rng.random() < 0.5
        lines = [json.dumps({"text": text, "label": label}, ensure_ascii=is_ascii) for text, label in rows]
        return "\n".join([*lines, ""]).encode()
    columns = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "sound.parquet")
    return (folder / "sound.parquet").read_bytes()


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Return the content with one fault."""
    kind, i = rng.randrange(8), rng.randrange(max(1, len(content)))
    if kind == 0:
        return content[:i] + bytes([rng.randrange(256)]) + content[i + 1 :]
    if kind == 1:
        return content[:i] + rng.choice(INSERTED) + content[i:]
    if kind == 2:
        return content[:i] + content[i + rng.randint(1, 40) :]
    if kind == 3:
        return content[:i]
    if kind == 4:
        return content.decode("utf-8", "replace").encode(rng.choice(ENCODINGS), "replace")
    if kind == 5:
        return content.replace(b"\n", rng.choice((b"\r\n", b"\r", b"\n\n")))
    if kind == 6:
        j = rng.randrange(max(1, len(content)))
        return content[:i] + content[j : j + rng.randint(1, 200)] + content[i:]
    return content.replace(rng.choice((b'"a"', b"a\n", b'"label"')), rng.choice(VALUES), rng.randint(1, 5))


def check(seed: int, folder: Path, base: DataConfig) -> Outcome:
    """Read one file with faults."""
    rng, kind = random.Random(seed), KINDS[seed % len(KINDS)]
    content = make_file(kind, rng, folder)
    for _ in range(rng.randint(1, 4)):
        content = mutate(content, rng)
    file = folder / f"{seed}.{'jsonl' if kind == 'json' else kind}"
    file.write_bytes(content)
    on_error = rng.choice(("strict", "strict", "replace", "skip"))
    config = replace(
        base, source="csv" if kind == "tsv" else kind, path=str(file), on_error=on_error, cache_dir=f"{folder}/cache"
    )
    started = time.monotonic()
    try:
        documents = open_source(config).splits["train"]
        texts, labels = documents.read(0, len(documents))
        pairs = [documents.read(i, i + 1) for i in range(len(documents))]
    except UserError as error:
        message = str(error)
        return Outcome(kind, "failed", message) if "\n" in message or file.name not in message else Outcome(kind, "refused")
    except Exception as error:
        return Outcome(kind, "failed", f"{type(error).__name__}: {error}")
    finally:
        file.unlink()
    if time.monotonic() - started > SECONDS:
        return Outcome(kind, "failed", f"{time.monotonic() - started:.0f} s")
    if [pair[0][0] for pair in pairs] != texts or [pair[1][0] for pair in pairs] != labels:
        return Outcome(kind, "failed", "rows differ when they are read one by one")
    file.write_bytes(content)
    try:
        expected = read_by_pandas(kind, file)
    except Exception:  # pandas raises many classes
        return Outcome(kind, "pandas refuses")
    finally:
        file.unlink()
    got = [text for text in texts if text is not None]
    return (
        Outcome(kind, "as pandas")
        if got == expected
        else Outcome(kind, "otherwise", f"{on_error}: {difference(got, expected)}")
    )


def read_by_pandas(kind: str, file: Path) -> list[str]:
    """Return the column of texts as pandas reads it, from the content in UTF-8."""
    if kind == "parquet":
        return [str(text) for text in pandas.read_parquet(file)["text"]]
    content = LineStream(file).read(-1)
    if kind == "json":
        return [str(text) for text in pandas.read_json(io.BytesIO(content), lines=True, dtype=False)["text"]]
    quoting = csv.QUOTE_NONE if kind == "tsv" else csv.QUOTE_MINIMAL
    options = {"sep": "\t" if kind == "tsv" else ",", "quoting": quoting, "dtype": str, "keep_default_na": False}
    return list(pandas.read_csv(io.BytesIO(content), **options)["text"])


def difference(got: list[str], expected: list[str]) -> str:
    pair = next(((one, other) for one, other in zip(got, expected, strict=False) if one != other), ("", ""))
    return f"{len(got)} rows, pandas {len(expected)}: {pair[0]!r:.60} and {pair[1]!r:.60}"


def run(count: int, seed: int) -> list[tuple[int, Outcome]]:
    """Return the outcome of each seed."""
    base = load_config(None, ["data.path=x"]).data
    with tempfile.TemporaryDirectory() as name:
        return [(number, check(number, Path(name), base)) for number in range(seed, seed + count)]


def report(outcomes: list[tuple[int, Outcome]]) -> str:
    counts = Counter((outcome.kind, outcome.result) for _, outcome in outcomes)
    lines = [f"{'':<10}" + "".join(f"{result:>16}" for result in RESULTS)]
    lines += [f"{kind:<10}" + "".join(f"{counts[kind, result]:>16}" for result in RESULTS) for kind in KINDS]
    details = [
        f"{outcome.result}, {outcome.kind}, seed {seed}: {outcome.detail}" for seed, outcome in outcomes if outcome.detail
    ]
    return "\n".join([*lines, "", *details])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data_mutations", description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="file to which the report is also written")
    args = parser.parse_args()
    outcomes = run(args.count, args.seed)
    text = report(outcomes)
    print(text)
    if args.output is not None:
        args.output.write_text(f"$ python -m benchmarks.data_mutations --count {args.count} --seed {args.seed}\n{text}\n")
    sys.exit(any(outcome.result == "failed" for _, outcome in outcomes))


if __name__ == "__main__":
    main()
