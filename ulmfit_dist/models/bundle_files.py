"""Files of an exported model: names, maximum sizes, and those that every model has. `bundle.py` describes their content.

Only these files are uploaded to a hub or downloaded from it, so neither texts nor pickles travel with a model. Trade-off: a
file that is added to exported models must be added here, too.
"""

from __future__ import annotations

from ulmfit_dist.data.token_store import MODEL_FILE
from ulmfit_dist.data.vocab import LONGEST_VOCAB

WEIGHTS = "model.safetensors"
CONFIG = "config.yaml"
LONGEST_TEXT = 1 << 20
"""Maximum size of config.yaml and training.json, in bytes."""
MAX_SIZES = {
    WEIGHTS: 1 << 34,
    "vocab.json": LONGEST_VOCAB,
    CONFIG: LONGEST_TEXT,
    "training.json": LONGEST_TEXT,
    "labels.json": LONGEST_VOCAB,
    MODEL_FILE: 1 << 28,
}
"""Maximum size of each file, in bytes."""
REQUIRED = (WEIGHTS, CONFIG, "vocab.json", "training.json")
"""Files that every exported model has."""
