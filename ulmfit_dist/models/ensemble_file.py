"""`ensemble.json`: the members of an ensemble run, their temperatures, and whether the linear model votes.

`run --both-directions`, `cross-validate --ensemble` and `ensemble --save` write it to `runs/<name>`. Members are named by
relative folders, so run directories that are moved or copied together stay an ensemble. Each has a digest, so a member that
was trained again afterwards is an error, not another ensemble. Trade-off: the weights are not copied, so members must not be
deleted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ulmfit_dist.errors import UserError
from ulmfit_dist.models.bundle import ModelBundle, bundle_digest, find_model, read_bundle
from ulmfit_dist.models.linear import LinearModel, load_linear, vocab_digest
from ulmfit_dist.pretrained.bundle_files import ENSEMBLE
from ulmfit_dist.utils.files import read_bounded, write_json

FORMAT = 1
"""Version of the format."""
ASKED = "runs"
"""Kind of an ensemble of runs that the user has named."""
KINDS = {"directions": "run --both-directions", "folds": "cross-validate --ensemble", ASKED: "ensemble --save"}
"""Kinds of ensembles, with the command that makes each."""
MOST_BYTES = 2**20
"""Maximum size of the file."""
MOST_MEMBERS = 1000
"""Maximum number of members."""


@dataclass(frozen=True)
class EnsembleMember:
    """A classifier of an ensemble, and the linear model fitted to the same training documents.

    Attributes:
        run: run directory, relative to that of the ensemble.
        digest: digest of the exported classifier.
        temperature: divisor of its logits; None for a regression.
        linear_temperature: that of the linear model.
        linear: its folder, relative; None if the linear model is that of an earlier member, or if there is none.
    """

    run: str
    digest: str
    temperature: float | None
    linear: str | None = None
    linear_temperature: float | None = None


@dataclass(frozen=True)
class EnsembleFile:
    """Content of `ensemble.json`.

    Attributes:
        kind: one of `KINDS`.
        identity: digest of everything that the figures depend on.
        linear_votes: the mean includes the linear models.
        members: the classifiers.
        selection: how that was decided: figures of combinations on the validation documents, and the difference.
    """

    kind: str
    identity: str
    linear_votes: bool
    members: list[EnsembleMember]
    selection: dict[str, Any] = field(default_factory=dict)

    def write(self, run: Path) -> None:
        """Write the file to a run directory, atomically."""
        write_json(run / ENSEMBLE, {"format": FORMAT, **asdict(self)})


def is_ensemble(run: Path) -> bool:
    """Return whether a folder is the run directory of an ensemble."""
    return (run / ENSEMBLE).is_file()


def read_ensemble(run: Path) -> EnsembleFile:
    """Read the file of a run directory. Raises UserError if it is missing, damaged or of another version."""
    try:
        return _parse(json.loads(read_bounded(run / ENSEMBLE, MOST_BYTES)))
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        reason = " ".join(f"{error}".split())[:200]
        raise UserError(
            f"{run / ENSEMBLE}: missing or damaged ({reason}): delete it, and start the command that made the ensemble again"
        ) from None


def refuse_ensemble(run: Path) -> None:
    """Raise UserError that names the members of an ensemble, where a single model is needed."""
    members = ", ".join(str(path_of_member(run, member)) for member in read_ensemble(run).members[:10])
    raise UserError(f"{run} is an ensemble, which has no model of its own: name one of its members, {members}")


def read_ensemble_members(run: Path, ensemble: EnsembleFile) -> list[ModelBundle]:
    """Return the exported classifiers of an ensemble. Raises UserError if one is missing or was trained again."""
    members = []
    for member in ensemble.members:
        path = path_of_member(run, member)
        folder = find_model(path, "classifier")
        if folder is None:
            raise UserError(
                f"{path}: no classifier model here, but {run} is an ensemble with it: restore the folder beside {run}, or "
                f"start {KINDS[ensemble.kind]} again"
            )
        if bundle_digest(folder) != member.digest:
            raise UserError(
                f"{folder} is not the classifier that {run} was made of: start {KINDS[ensemble.kind]} again, or restore it"
            )
        members.append(read_bundle(folder))
    return members


def read_linear_models(run: Path, ensemble: EnsembleFile, members: list[ModelBundle]) -> list[LinearModel]:
    """Return the linear models of an ensemble, in the order of its members. Raises UserError if one does not fit."""
    models = []
    for member, exported in zip(ensemble.members, members, strict=True):
        if member.linear is None:
            continue
        model = load_linear(run / member.linear)
        if model.settings.vocab != vocab_digest(exported.vocab):
            raise UserError(
                f"{run / member.linear}: a linear model of other tokens than those of {exported.folder}: start "
                f"{KINDS[ensemble.kind]} again"
            )
        models.append(model)
    return models


def _parse(content: Mapping[str, Any]) -> EnsembleFile:
    """Return the content of a file. Raises ValueError, TypeError or KeyError if it is not one."""
    if content["format"] != FORMAT:
        raise ValueError(f"format {content['format']}, but this version reads {FORMAT}")
    if content["kind"] not in KINDS or type(content["linear_votes"]) is not bool:
        raise ValueError("unknown kind")
    members = [EnsembleMember(**member) for member in content["members"]]
    if not 0 < len(members) <= MOST_MEMBERS:
        raise ValueError(f"{len(members)} members")
    for member in members:
        texts = [member.run, member.digest, *([] if member.linear is None else [member.linear])]
        temperatures = [t for t in (member.temperature, member.linear_temperature) if t is not None]
        if not all(isinstance(text, str) for text in texts) or not all(map(_is_temperature, temperatures)):
            raise ValueError("a member has an invalid value")
    if not isinstance(content["identity"], str) or not isinstance(content["selection"], dict):
        raise ValueError("invalid identity or selection")
    return EnsembleFile(content["kind"], content["identity"], content["linear_votes"], members, content["selection"])


def path_of_member(run: Path, member: EnsembleMember) -> Path:
    """Return the run directory of a member, given that of the ensemble, without the `..` of the usual place beside it."""
    return run.parent / member.run[3:] if member.run.startswith("../") else run / member.run


def _is_temperature(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value) and value > 0
