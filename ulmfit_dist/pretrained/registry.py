"""Publicly available pretrained language models by name, from `pretrained_models.yaml`.

The name of a language's default model is its ISO 639-1 code. What is not known of a model, such as a digest that its
publisher does not give, is null there. Trade-off: an address that moves needs a new version of this package, or
files that the user puts into the cache.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from ulmfit_dist.errors import UserError

FASTAI_NAMES = {"wt103_fwd": ("en", False), "wt103_bwd": ("en", True)}
"""fastai's own names of its English models: name here, and whether it reads backwards."""
_PATH = Path(__file__).with_name("pretrained_models.yaml")


@dataclass(frozen=True)
class PublicModel:
    """A pretrained language model that others publish.

    Attributes:
        name: value of `model.pretrained`.
        language: ISO 639-1 code.
        source: who publishes it.
        page: page that describes it.
        forwards: addresses of its files, read forwards; empty if there is no such model.
        backwards: as `forwards`, for the model that reads texts from their end.
        sha256: digests by address, where they are known.
        config: keys of the config that the model determines, such as `model.n_hid`; missing keys are not known.
        tokenizer: how its texts were tokenized.
        trained_on: its texts.
        license: license of the weights, as their publisher gives it.
        note: what else a user must know; empty if nothing.
    """

    name: str
    language: str
    source: str
    page: str
    forwards: tuple[str, ...]
    backwards: tuple[str, ...]
    sha256: Mapping[str, str]
    config: Mapping[str, Any]
    tokenizer: str
    trained_on: str
    license: str
    note: str = ""

    def addresses(self, backwards: bool) -> tuple[str, ...]:
        """Return the addresses of a direction. Raises UserError if there is no model of this direction."""
        addresses = self.backwards if backwards else self.forwards
        if not addresses:
            other = "forwards" if backwards else "backwards"
            raise UserError(
                f"model.pretrained={self.name}: {self.source} has only a model that reads {other}: set "
                f"model.backwards={str(not backwards).lower()}, or use other weights"
            )
        return addresses


@functools.cache
def public_models() -> dict[str, PublicModel]:
    """Return all models by name, in the order of their names."""
    names = {item.name for item in fields(PublicModel)}
    entries = yaml.safe_load(_PATH.read_text(encoding="utf-8"))
    models = [PublicModel(**{key: _frozen(value) for key, value in entry.items() if key in names}) for entry in entries]
    return {model.name: model for model in sorted(models, key=lambda model: model.name)}


def find_public_model(name: str) -> PublicModel | None:
    """Return the model of a name, fastai's names included; None if there is none."""
    return public_models().get(FASTAI_NAMES.get(name, (name, False))[0])


def is_public_name(name: str) -> bool:
    """Return whether `model.pretrained` names a model of the list, not a path."""
    return find_public_model(name) is not None


def unknown_name(name: str) -> str:
    """Return the middle of a message about a value that is neither a name nor a path."""
    close = get_close_matches(name, [*public_models(), *FASTAI_NAMES], n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"neither a public model ({hint}`ulmfit-dist pretrained` lists them) nor"


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
