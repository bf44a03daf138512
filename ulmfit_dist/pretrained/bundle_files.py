"""Files of an exported model: names, maximum sizes, and those that every model has. `bundle.py` describes their content.

Only these files are uploaded to a hub or downloaded from it, so neither texts nor pickles travel with a model. Trade-off: a
file that is added to exported models must be added here, too.
"""

from __future__ import annotations

WEIGHTS = "model.safetensors"
CONFIG = "config.yaml"
ENSEMBLE = "ensemble.json"
"""File of a run directory whose classifier is an ensemble of other runs; not a file of an exported model."""
LONGEST_TEXT = 1 << 20
"""Maximum size of config.yaml and training.json, in bytes."""
MAX_SIZES = {
    WEIGHTS: 1 << 34,
    "vocab.json": 1 << 28,
    CONFIG: LONGEST_TEXT,
    "training.json": LONGEST_TEXT,
    "labels.json": 1 << 28,
    "sentencepiece.model": 1 << 28,
}
"""Maximum size of each file, in bytes."""
REQUIRED = (WEIGHTS, CONFIG, "vocab.json", "training.json")
"""Files that every exported model has."""
