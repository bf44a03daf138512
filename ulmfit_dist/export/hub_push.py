"""Upload of an exported model to the Hugging Face hub, as one commit: the files of the model, and its model card.

The files are those of `pretrained/bundle_files.py`, with the config and metadata of `published.py`; nothing else of the run
directory is read, except the figures of its summary. Trade-off: the vocabulary is uploaded as it is, so words of private
texts that occur at least tokenizer.min_freq times become readable to everyone who may read the repository.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ulmfit_dist.config.loading import to_yaml
from ulmfit_dist.data.token_store import MODEL_FILE
from ulmfit_dist.errors import UserError
from ulmfit_dist.export.model_card import CardOptions, model_card
from ulmfit_dist.export.published import published_config, published_sentencepiece, published_training
from ulmfit_dist.models.bundle import ModelBundle, find_model, load_model, model_folder, read_bundle
from ulmfit_dist.models.registry import user_class
from ulmfit_dist.pretrained.bundle_files import CONFIG, MAX_SIZES
from ulmfit_dist.pretrained.hub import (
    cause_of,
    client_errors,
    hub_client,
    is_hub_model,
    is_network_error,
    is_repository_name,
    status_of,
)

CARD = "README.md"
STAGES = ("classifier", "lm")
"""Stages in the order in which the default is chosen."""
LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*")


@dataclass(frozen=True)
class Pushed:
    """An uploaded model.

    Attributes:
        stage: `lm` or `classifier`.
        name: USER/NAME.
        url: page of the commit.
        is_private: visibility of the repository.
        min_freq: occurrences in the training texts from which a word is in the uploaded vocabulary.
    """

    stage: str
    name: str
    url: str
    is_private: bool
    min_freq: int


def push(
    run: str | Path,
    name: str,
    license: str,
    stage: str | None = None,
    private: bool = False,
    languages: Sequence[str] = (),
) -> Pushed:
    """Upload an exported model with its model card to the hub, as one commit, which `hf:USER/NAME` then names.

    The vocabulary contains words of the training texts. An existing repository gets a new commit and keeps its visibility.

    Args:
        run: a run directory, or an exported model's folder.
        name: USER/NAME of the repository; it is created if it does not exist.
        license: identifier of the model's license, such as apache-2.0 or cc-by-4.0.
        stage: "lm" or "classifier"; None: the classifier if the run has one.
        private: create a private repository.
        languages: language codes of the texts, such as ["de"]; empty: tokenizer.lang, unless SentencePiece splits the texts.

    Raises:
        UserError: no such model, a malformed name or license, no token or no rights, no network, or `private` for a public
            repository.
    """
    check_options(name, license, languages)
    stage, exported = choose_model(run, stage)
    languages = languages or _languages(exported)
    files = published_files(exported, CardOptions(name, license, languages))
    is_private, url = _upload(files, name, private, stage)
    return Pushed(stage, name, url, is_private, exported.config.tokenizer.min_freq)


def check_options(name: str, license: str, languages: Sequence[str]) -> None:
    """Raise UserError if a name, a license or a language is malformed."""
    if not is_repository_name(name):
        raise UserError(f"{name}: expected USER/NAME of a repository, such as maria/reviews")
    if not LICENSE.fullmatch(license):
        raise UserError(f"--license {license}: expected an identifier of the hub, such as apache-2.0, mit or cc-by-4.0")
    for language in languages:
        if not LANGUAGE.fullmatch(language):
            raise UserError(f"--language {language}: expected a language code, such as en, de or pt-BR")


def choose_model(run: str | Path, stage: str | None) -> tuple[str, ModelBundle]:
    """Return stage and content of the model to upload: the classifier if there is one. Raises UserError if there is none."""
    if is_hub_model(run):
        raise UserError(f"{run}: is on the hub already: give a run directory, or an exported model's folder")
    if stage is not None:
        return stage, read_bundle(model_folder(Path(run), stage))
    for candidate in STAGES:
        if (folder := find_model(Path(run), candidate)) is not None:
            return candidate, read_bundle(folder)
    raise UserError(f"{run}: no exported model here: give a run directory, such as runs/quickstart, or a model's folder")


def published_files(exported: ModelBundle, options: CardOptions) -> dict[str, bytes | Path]:
    """Return content, or path, of each file of the repository by its name.

    Raises:
        UserError: the model is damaged, or its config cannot be published.
    """
    files: dict[str, bytes | Path] = {
        name: exported.folder / name for name in MAX_SIZES if (exported.folder / name).is_file()
    }
    config = published_config(exported.config, options.name.partition("/")[2])
    files[CONFIG] = to_yaml(config).encode()
    training = published_training(exported.training)
    files["training.json"] = json.dumps(training, ensure_ascii=False, indent=1).encode()
    if isinstance(path := files.get(MODEL_FILE), Path):
        files[MODEL_FILE] = published_sentencepiece(path.read_bytes())
    _check_loads(files, exported)
    files[CARD] = model_card(exported, options).encode()
    return files


def _check_loads(files: dict[str, bytes | Path], exported: ModelBundle) -> None:
    """Load the model as it will be downloaded. Raises UserError if it is damaged."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            if isinstance(content, Path):
                (Path(folder) / name).symlink_to(content.absolute())
            else:
                (Path(folder) / name).write_bytes(content)
        published = read_bundle(Path(folder))
    if user_class(published.config.model) is None:  # a class of the user's is not needed for the upload
        load_model(ModelBundle(exported.folder, published.config, published.vocab, published.labels, published.training))


def _languages(exported: ModelBundle) -> list[str]:
    tokenizer = exported.config.tokenizer
    return [tokenizer.lang] if tokenizer.type == "word" and LANGUAGE.fullmatch(tokenizer.lang) else []


def _upload(files: dict[str, bytes | Path], name: str, private: bool, stage: str) -> tuple[bool, str]:
    """Create the repository if it is missing, and commit the files. Returns whether it is private, and the commit's URL."""
    with client_errors(lambda error: explain_push(error, name)):
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, get_token, is_offline_mode

        if is_offline_mode():
            raise UserError(f"{name}: HF_HUB_OFFLINE is set, so nothing is uploaded: unset it")
        if get_token() is None:
            raise UserError(
                f"{name}: no token of the hub: run `hf auth login`, or set HF_TOKEN to a token with write access"
            )
        client = hub_client()
        info = _repository(client, name)
        if info is None:
            client.create_repo(name, private=True if private else None)
            info = client.model_info(name)
        elif private and not info.private:
            raise UserError(
                f"{name}: exists and is public, and --private does not change that: make it private in its settings on the "
                f"hub, or give another name"
            )
        present = {sibling.rfilename for sibling in info.siblings or ()}
        old = [CommitOperationDelete(path) for path in sorted(present & (MAX_SIZES.keys() - files.keys()))]
        new = [CommitOperationAdd(path, content) for path, content in files.items()]
        message = f"Upload a {'language model' if stage == 'lm' else 'classifier'} of ulmfit_dist"
        commit = client.create_commit(name, [*old, *new], commit_message=message)
        return bool(info.private), str(commit.commit_url)


def _repository(client: Any, name: str) -> Any:
    """Return the hub's information about a repository; None if it does not exist, or the token may not read it."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return client.model_info(name)
    except RepositoryNotFoundError:
        return None


def explain_push(error: Exception, name: str) -> UserError | None:
    """Return the UserError of a failed upload."""
    status = status_of(error)
    if status == 401:
        return UserError(
            f"{name}: the hub rejects the token (401): run `hf auth login`, or set HF_TOKEN to a valid one with write access"
        )
    if status in (403, 404):
        return UserError(
            f"{name}: the token may not write there ({status}): give your user name or organization before the slash, and "
            f"a token with write access"
        )
    if status is not None:
        return UserError(f"{name}: the hub answers with status {status} ({cause_of(error)}): run the same command again")
    if is_network_error(error):
        return UserError(
            f"{name}: the hub cannot be reached ({cause_of(error)}): copy the model's folder to a machine with a network, "
            f"and push it from there"
        )
    if isinstance(error, (ValueError, RuntimeError, OSError)):
        return UserError(f"{name}: cannot be uploaded ({cause_of(error)})")
    return None
