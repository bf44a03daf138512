"""Data card and recipe for user-supplied texts: `ulmfit-dist init`.

The recipe is sized for this machine by timing a few training steps. Trade-off: a choice among four model sizes, measured
in seconds, instead of a search.
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
from ulmfit_dist.pretrained.registry import FASTAI_NAMES
from ulmfit_dist.recipes.dataset_profile import Profile, TextOptions, profile_texts
from ulmfit_dist.recipes.planner import MOST_LM_EPOCHS, Durations, Plan, Speed, choose_plan, durations
from ulmfit_dist.recipes.sample_store import make_sample_store
from ulmfit_dist.recipes.training_config import corpus_of, recipe_config, recipe_reasons
from ulmfit_dist.recipes.yaml_writer import recipe_yaml
from ulmfit_dist.stages.estimate import CorpusSize, TimingLimits, estimate_stage
from ulmfit_dist.utils.files import write_bytes

BUSY = 2.0
"""Load per core above which timings do not represent an idle machine."""


@dataclass(frozen=True)
class RecipeOptions:
    """Time limit, name and path of a recipe.

    Attributes:
        minutes: maximum duration of a run on this machine.
        name: name of the run; None: the name of the path of the texts.
        output: path of the recipe; None: NAME.yaml in the current folder.
    """

    minutes: float = 15
    name: str | None = None
    output: Path | None = None


@dataclass(frozen=True)
class InitResult:
    """Result of `init`: the data card and the recipe.

    Attributes:
        card: data card of the texts.
        recipe: path of the written recipe.
        command: command that trains with the recipe.
        minutes: expected minutes of `prepare`, `lm` and `classifier`, and of a whole run as `all`.
        fits: True if the run fits the given minutes.
        load: load of the machine, if it was busy during the measurement; else empty.
    """

    card: DataCard
    recipe: Path
    command: str
    minutes: dict[str, float]
    fits: bool
    load: str

    def to_dict(self) -> dict[str, Any]:
        """Return the data card and the other fields as JSON-able values."""
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
    target: RecipeOptions | None = None,
    show: Callable[[object], None] | None = None,
) -> InitResult:
    """Profile texts, choose a recipe that trains on them in the given minutes, and write it.

    Args:
        path: a folder, a CSV, TSV, JSON or Parquet file, a folder of such files, or `hub:NAME`.
        options: user-given properties of the texts.
        target: time limit, name and path of the recipe; None: the defaults.
        show: called with the data card before anything is measured.

    Raises:
        UserError: the texts cannot be read, an option is needed to decide, or the recipe exists already.
    """
    if runtime.world_size > 1:
        raise UserError(f"init runs on 1 process, but was started on {runtime.world_size}: start it without a launcher")
    target = target or RecipeOptions()
    if target.minutes <= 0:
        raise UserError(f"--minutes {target.minutes:g}: give a number above 0")
    name = target.name or name_of(path)
    recipe = target.output or Path(f"{name}.yaml")
    _check_free(recipe, name, options)
    _check_weights(recipe, options)
    profile = profile_texts(path, options, runtime.device.type == "cuda")
    if show is not None:
        show(profile.card)
    plan, expected, fits = _choose(profile, runtime, target.minutes)
    config = replace(recipe_config(profile, plan), name=name)
    stage = "run" if config.data.label_col is not None else "pretrain"
    heading = [
        f"{profile.card.documents:,} documents of {path}, by `ulmfit-dist init`. Train with: ulmfit-dist {stage} {recipe}",
        *_suggest_self_training(config, recipe),
        *_expected_minutes(expected, runtime),
        *_limits(plan, target.minutes, fits),
    ]
    reasons = {**profile.reasons, **recipe_reasons(profile, plan, expected)}
    left_out = (["classifier"] if stage == "pretrain" else []) + (
        ["data.text_col", "data.label_col"] if config.data.source == "folder" and stage == "run" else []
    )
    _write(recipe, recipe_yaml(config, reasons, heading, left_out))
    minutes = {key: round(seconds / 60, 2) for key, seconds in _parts(expected).items()}
    return InitResult(profile.card, recipe, f"ulmfit-dist {stage} {shlex.quote(str(recipe))}", minutes, fits, _load())


def _suggest_self_training(config: Config, recipe: Path) -> list[str]:
    """Return the comment line about the texts without a label, if the linear model learns from them as well."""
    if config.classifier.baseline_features != "lsa" or config.classifier.target != "category":
        return []
    given = f"{recipe} name={config.name}-self classifier.encoder={config.run_dir}/lm"
    return [
        f"Few labels: after it, ulmfit-dist self-train {given} also trains on labels that models give to the other texts."
    ]


def _write(recipe: Path, content: str) -> None:
    """Write a recipe. Raises UserError, and writes nothing, if keys that the user has set make it invalid."""
    with tempfile.TemporaryDirectory() as folder:
        tried = Path(folder) / recipe.name
        tried.write_text(content, encoding="utf-8")
        load_config(tried)
    write_bytes(recipe, content.encode())


def describe_result(result: InitResult) -> str:
    """Return the final lines of the command: recipe, expected duration and the command that trains with it."""
    minutes = ", ".join(f"{stage} {value:.1f}" for stage, value in result.minutes.items())
    warnings = [] if result.fits else ["warning: even the smallest model takes longer than --minutes"]
    if result.load:
        warnings.append(
            f"warning: this machine is busy ({result.load}): run init again on the idle machine to get a larger model"
        )
    return "".join(f"{line}\n" for line in warnings) + f"{result.recipe}: expected minutes: {minutes}\n\n  {result.command}"


def _check_free(recipe: Path, name: str, options: TextOptions) -> None:
    """Raise UserError if the recipe, or a run of its name, exists already."""
    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise UserError(f"--name {name!r}: give a plain name of letters, digits, '.', '+', '-' and '_'")
    if recipe.exists():
        raise UserError(f"{recipe} already exists: give another name with --name, or another file with --output")
    if not recipe.absolute().parent.is_dir():
        raise UserError(f"--output {recipe}: no folder {recipe.parent}")
    run = Path(options.values.get("runs_dir", Config().runs_dir)) / name
    if run.exists():
        raise UserError(f"{run}: a run with this name already exists: give another name with --name")


def _check_weights(recipe: Path, options: TextOptions) -> None:
    """Raise UserError for pretrained weights, whose sizes and tokenizer would contradict those that `init` chooses."""
    for key in ("model.pretrained", "classifier.encoder"):
        value = options.values.get(key, "null")
        if value not in ("null", *FASTAI_NAMES):
            raise UserError(
                f"{key}={value}: init chooses sizes and tokenizer itself, but weights bring their own: leave the key out, "
                f"then set it in {recipe}, without the sections model and tokenizer"
            )


def _choose(profile: Profile, runtime: Runtime, minutes: float) -> tuple[Plan, Durations, bool]:
    """Return the plan, its durations, and True if they fit the minutes."""
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
    """Return True if the texts are English and this machine has pretrained English weights."""
    tokenizer = profile.config.tokenizer
    return tokenizer.lang == "en" and tokenizer.type == "word" and has_weights("wt103_fwd")


def _measure(config: Config, runtime: Runtime, store: TokenStore, scale: float, vocab_size: int) -> Speed:
    """Time some steps of both stages on a sample."""
    phases = [Phase(1, 2e-2, -1), Phase(5, 1e-2, 0)]
    config = replace(
        config,
        runs_dir=tempfile.gettempdir(),
        data=replace(config.data, valid_col=None, on_duplicates="warn", missing_label=None, label_col="label"),
        lm=replace(config.lm, phases=[Phase(MOST_LM_EPOCHS, 1e-2)]),
        classifier=replace(config.classifier, phases=phases, target="category", y_range=None),
    )
    splits, size, limits = split_documents(store, config), CorpusSize(scale, vocab_size), TimingLimits(min_work=0)
    lm = estimate_stage(config, runtime, store, "lm", size, limits)
    lm_tokens = float(store.lengths[splits.lm_train].sum()) * scale
    if not len(splits.classifier_train):
        return Speed(lm.seconds[0] / lm_tokens, 0.0, 0.0)
    classifier = estimate_stage(config, runtime, store, "classifier", size, limits)
    lengths = store.lengths[splits.classifier_train]
    tokens = float(np.minimum(lengths, config.classifier.max_doc_tokens or lengths.max()).sum()) * scale
    num_test = max(len(splits.test_texts), 1) * scale
    frozen, full = classifier.seconds[0], classifier.seconds[-1]
    return Speed(lm.seconds[0] / lm_tokens, frozen / tokens, full / tokens, classifier.test_seconds / num_test)


def _expected_minutes(expected: Durations, runtime: Runtime) -> list[str]:
    """Return the comment lines with the expected duration of a run."""
    import torch

    device = "one GPU" if runtime.device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    parts = ", ".join(f"{key} {seconds / 60:.1f}" for key, seconds in _parts(expected).items())
    load = _load()
    return [
        f"Expected minutes on the machine that wrote this file ({device}): {parts}.",
        *([f"The machine was busy ({load}): a run on the idle machine is faster."] if load else []),
    ]


def _limits(plan: Plan, minutes: float, fits: bool) -> list[str]:
    """Return the comment line about documents or time that the minutes do not allow for."""
    if not fits:
        return [f"Even the smallest model does not fit into {minutes:g} minutes."]
    if plan.limit is not None:
        return [
            f"All documents do not fit into {minutes:g} minutes: data.max_documents limits them; --minutes sets the time."
        ]
    return []


def _load() -> str:
    """Return the load of a busy machine, such as `load 9 on 4 cores`; empty if it is idle."""
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
    """Return the run name that follows from the path of its texts: the name of the file, folder or data set."""
    if path.startswith(HUB):
        stem = path.removeprefix(HUB).rstrip("/").rpartition("/")[2]
    else:
        resolved = Path(path).expanduser().resolve()
        stem = resolved.name.partition(".")[0] if resolved.is_file() else resolved.name
        if resolved.is_file() and split_of_name(stem):
            stem = resolved.parent.name
    cleaned = re.sub(r"[^\w.+-]+", "-", stem).strip("-.+")
    return cleaned or "texts"
