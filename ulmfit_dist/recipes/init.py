"""The first command for texts of one's own: a data card, and a recipe sized for this machine.

Trade-off: some seconds of measuring and a choice among four sizes, in place of a search.
"""

from __future__ import annotations

import os
import re
import shlex
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ulmfit_dist.config.loading import load_config
from ulmfit_dist.config.schema import Config, Phase
from ulmfit_dist.data.profile.card import DataCard
from ulmfit_dist.data.profile.inputs import HUB
from ulmfit_dist.data.sources.split_names import split_of_name
from ulmfit_dist.data.splits import split_documents
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.models.pretrained import has_weights
from ulmfit_dist.recipes.dataset_profile import Profile, TextOptions, profile_texts
from ulmfit_dist.recipes.planner import MOST_LM_EPOCHS, Durations, Plan, Speed, choose_plan, durations
from ulmfit_dist.recipes.sample_store import make_sample_store
from ulmfit_dist.recipes.training_config import corpus_of, recipe_config, recipe_reasons
from ulmfit_dist.recipes.yaml_writer import recipe_yaml
from ulmfit_dist.stages.estimate import estimate_stage
from ulmfit_dist.utils.files import write_bytes

BUSY = 2.0
"""Load per core from which on a measurement tells little of a quiet machine."""


@dataclass(frozen=True)
class InitResult:
    """Result of `init`: the data card and the recipe.

    Attributes:
        card: of the texts.
        recipe: the file that was written.
        command: the command to go on with.
        minutes: expected duration of `prepare`, `lm` and `classifier`, and in `all` of a run.
        fits: whether that is within the minutes that were given.
        load: of a machine that was busy while it was measured; else empty.
    """

    card: DataCard
    recipe: Path
    command: str
    minutes: dict[str, float]
    fits: bool
    load: str

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON-able values: the card, with what was written."""
        written = {
            "recipe": str(self.recipe),
            "command": self.command,
            "minutes": self.minutes,
            "fits": self.fits,
            "load": self.load,
        }
        return {**self.card.to_dict(), **written}


def init(
    path: str,
    runtime: Runtime,
    options: TextOptions,
    minutes: float = 15,
    name: str | None = None,
    output: Path | None = None,
    show: Callable[[object], None] | None = None,
) -> InitResult:
    """Look at texts, choose a recipe that trains on them in so many minutes, and write it.

    Args:
        path: a folder, a CSV, TSV, JSON or Parquet file, a folder of such files, or `hub:NAME`.
        options: what the user says of the texts.
        minutes: that a run may take on this machine.
        name: of the run; None: that of the path.
        output: the recipe's file; None: NAME.yaml in the current folder.
        show: prints the card as soon as it is there.

    Raises:
        UserError: texts that cannot be read, a question that the options must answer, a file that is there already.
    """
    if runtime.world_size > 1:
        raise UserError(f"init: started on {runtime.world_size} processes: start it as one")
    if minutes <= 0:
        raise UserError(f"--minutes {minutes:g}: give a number above 0")
    name = name or name_of(path)
    recipe = output or Path(f"{name}.yaml")
    _check_free(recipe, name, options)
    profile = profile_texts(path, options, runtime.device.type == "cuda")
    if show is not None:
        show(profile.card)
    plan, expected, fits = _choose(profile, runtime, minutes)
    config = replace(recipe_config(profile, plan), name=name)
    stage = "run" if config.data.label_col is not None else "pretrain"
    heading = _heading(path, profile, plan, expected, minutes, fits, runtime, f"ulmfit-dist {stage} {recipe}")
    reasons = {**profile.reasons, **recipe_reasons(profile, plan, expected)}
    left_out = (["classifier"] if stage == "pretrain" else []) + (
        ["data.text_col", "data.label_col"] if config.data.source == "folder" and stage == "run" else []
    )
    _write(recipe, recipe_yaml(config, reasons, heading, left_out))
    told = {key: round(seconds / 60, 2) for key, seconds in _parts(expected).items()}
    return InitResult(profile.card, recipe, f"ulmfit-dist {stage} {shlex.quote(str(recipe))}", told, fits, _load())


def _write(recipe: Path, content: str) -> None:
    """Write a recipe that composes. Raises UserError where it does not, for keys that the user has set."""
    with tempfile.TemporaryDirectory() as folder:
        tried = Path(folder) / recipe.name
        tried.write_text(content, encoding="utf-8")
        load_config(tried)
    write_bytes(recipe, content.encode())


def describe_result(result: InitResult) -> str:
    """Return the lines that end the command: what was written, how long a run takes, and how to go on."""
    minutes = ", ".join(f"{stage} {value:.1f}" for stage, value in result.minutes.items())
    warnings = [] if result.fits else ["warning: even the smallest model takes longer than --minutes"]
    if result.load:
        warnings.append(
            f"warning: this machine is busy ({result.load}): alone, it takes a larger model in that time: init again then"
        )
    return "".join(f"{line}\n" for line in warnings) + f"{result.recipe}: expected minutes: {minutes}\n\n  {result.command}"


def _check_free(recipe: Path, name: str, options: TextOptions) -> None:
    """Raise UserError where the recipe, or a run of its name, is there already."""
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise UserError(f"--name {name!r}: give a plain name of letters, digits, '.', '+', '-' and '_'")
    if recipe.exists():
        raise UserError(f"{recipe}: is there already: give another name by --name, or another file by --output")
    if not recipe.absolute().parent.is_dir():
        raise UserError(f"--output {recipe}: no folder {recipe.parent}")
    given = next((word.partition("=")[2] for word in options.overrides if word.startswith("runs_dir=")), Config().runs_dir)
    if (Path(given) / name).exists():
        raise UserError(f"{Path(given) / name}: a run of this name is there already: give another name by --name")


def _choose(profile: Profile, runtime: Runtime, minutes: float) -> tuple[Plan, Durations, bool]:
    """Return the plan, its durations, and whether they are within the minutes."""
    corpus, tokens = corpus_of(profile), profile.tokens
    growth = profile.card.documents / max(len(tokens.lengths), 1)
    vocab_size = tokens.vocab_size(growth, profile.max_vocab)
    has_gpu = runtime.device.type == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        store, scale = make_sample_store(Path(folder), profile.survey, profile.config.tokenizer)

        def measure(plan: Plan) -> Speed:
            return _measure(recipe_config(profile, plan), runtime, store, scale, vocab_size)

        plan, speed, fits = choose_plan(corpus, measure, 60 * minutes, vocab_size, has_gpu, _starts_trained(profile))
    return plan, durations(plan, corpus, speed), fits


def _starts_trained(profile: Profile) -> bool:
    """Return whether the texts are English and pretrained weights of it lie on this machine."""
    tokenizer = profile.config.tokenizer
    return tokenizer.lang == "en" and tokenizer.type == "word" and has_weights("wt103_fwd")


def _measure(config: Config, runtime: Runtime, store: TokenStore, scale: float, vocab_size: int) -> Speed:
    """Measure some steps of both stages on a sample."""
    phases = [Phase(1, 2e-2, -1), Phase(5, 1e-2, 0)]
    config = replace(
        config,
        runs_dir=tempfile.gettempdir(),
        data=replace(config.data, valid_col=None, on_duplicates="warn", missing_label=None, label_col="label"),
        lm=replace(config.lm, phases=[Phase(MOST_LM_EPOCHS, 1e-2)]),
        classifier=replace(config.classifier, phases=phases, target="category", y_range=None),
    )
    splits = split_documents(store, config)
    lm = estimate_stage(config, runtime, store, "lm", scale, vocab_size, min_work=0)
    lm_tokens = float(store.lengths[splits.lm_train].sum()) * scale
    if not len(splits.classifier_train):
        return Speed(lm.seconds[0] / lm_tokens, 0.0, 0.0)
    classifier = estimate_stage(config, runtime, store, "classifier", scale, vocab_size, min_work=0)
    lengths = store.lengths[splits.classifier_train]
    tokens = float(np.minimum(lengths, config.classifier.max_doc_tokens or lengths.max()).sum()) * scale
    num_test = max(len(splits.test_texts), 1) * scale
    frozen, full = classifier.seconds[0], classifier.seconds[-1]
    return Speed(lm.seconds[0] / lm_tokens, frozen / tokens, full / tokens, classifier.test_seconds / num_test)


def _heading(
    path: str,
    profile: Profile,
    plan: Plan,
    expected: Durations,
    minutes: float,
    fits: bool,
    runtime: Runtime,
    command: str,
) -> list[str]:
    import torch

    device = "one GPU" if runtime.device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    parts = ", ".join(f"{key} {seconds / 60:.1f}" for key, seconds in _parts(expected).items())
    lines = [
        f"{profile.card.documents:,} documents of {path}, by `ulmfit-dist init`. Train with: {command}",
        f"Minutes to expect on the machine that this was written on ({device}): {parts}.",
    ]
    if load := _load():
        lines.append(f"The machine was busy then ({load}): alone, a run is faster.")
    if not fits:
        lines.append(f"Even the smallest model does not fit into {minutes:g} minutes.")
    elif plan.limit is not None:
        lines.append(
            f"All documents do not fit into {minutes:g} minutes: data.max_documents takes a part; --minutes gives more time."
        )
    return lines


def _load() -> str:
    """Return the load of a machine that does much else, as a phrase; empty where it does not."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return f"load {load:.0f} on {cores} cores" if load > BUSY * cores else ""


def _parts(expected: Durations) -> dict[str, float]:
    return {
        "prepare": expected.prepare,
        "lm": expected.lm,
        "classifier": expected.classifier,
        "all": expected.total,
    }


def name_of(path: str) -> str:
    """Return the name of a run by the path of its texts: that of the file or folder, or of the data set."""
    if path.startswith(HUB):
        stem = path.removeprefix(HUB).rstrip("/").rpartition("/")[2]
    else:
        place = Path(path).expanduser().resolve()
        stem = place.name.partition(".")[0] if place.is_file() else place.name
        if place.is_file() and split_of_name(stem):
            stem = place.parent.name
    cleaned = re.sub(r"[^\w.+-]+", "-", stem).strip("-.+")
    return cleaned or "texts"
