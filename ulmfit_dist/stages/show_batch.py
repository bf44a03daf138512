"""fastai's `show_batch` for the terminal: documents of a store, and shapes and text of a stage's first batch."""

from __future__ import annotations

from ulmfit_dist.config.schema import Config
from ulmfit_dist.data.batches import IGNORED
from ulmfit_dist.data.token_store import NO_LABEL, TokenStore
from ulmfit_dist.data.vocab import PAD_ID
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.training.learner import DistributedLearner

ROWS, TOKENS = 3, 24
"""Number of shown rows of a batch, and of shown tokens per row."""
TOKENS_OF_A_DOCUMENT = 80
"""Number of shown tokens of a document."""


def show_first_batch(config: Config, runtime: Runtime, store: TokenStore, learner: DistributedLearner) -> None:
    """Print rank 0's first batch if `runtime.show_first_batch` is set."""
    if not config.runtime.show_first_batch:
        return
    batches = next(iter(learner.dls.train))
    first = batches[0]
    runtime.print(
        f"{learner.stage}: {len(learner.dls.train)} steps per epoch; a step of this rank is {len(batches)} micro-batch(es) "
        f"of x {tuple(first.x.shape)} {first.x.dtype}, y {tuple(first.y.shape)}, rows {first.rows}"
    )
    groups = [sum(parameter.numel() for parameter in group) for group in learner.splitter(learner.model)]
    runtime.print(f"{learner.stage}: {len(groups)} layer groups of {', '.join(f'{n:,}' for n in groups)} parameters")
    documents = [None] * ROWS if first.documents is None else first.documents[:ROWS].tolist()
    for x_T, y, document in zip(first.x[:ROWS], first.y[:ROWS], documents, strict=False):
        tokens = " ".join(store.vocab[i] for i in x_T[x_T != PAD_ID][:TOKENS].tolist())
        if document is None:
            target = _tokens(store, y[y != IGNORED][:TOKENS].tolist())
        else:
            target = store.label_names[store.labels[document]]
        runtime.print(f"  x: {tokens!r}\n  y: {target!r}")


def show_documents(store: TokenStore, num_documents: int, runtime: Runtime) -> None:
    """Print evenly spaced documents of a store: split, label, length and the first tokens."""
    num_shown = min(num_documents, len(store))
    for i in [k * len(store) // num_shown for k in range(num_shown)]:
        ids = store.document(i)
        split = next(name for name, (start, stop) in store.meta["splits"].items() if start <= i < stop)
        label = f", label {store.label_names[store.labels[i]]}" if store.labels[i] != NO_LABEL else ""
        rest = " …" if len(ids) > TOKENS_OF_A_DOCUMENT else ""
        runtime.print(f"\ndocument {i} ({split}{label}, {len(ids):,} tokens)")
        runtime.print(f"  {_tokens(store, ids[:TOKENS_OF_A_DOCUMENT].tolist())}{rest}")


def _tokens(store: TokenStore, ids: list[int]) -> str:
    return " ".join(store.vocab[i] for i in ids)
