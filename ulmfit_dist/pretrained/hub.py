"""Exported models of the Hugging Face hub, named `hf:USER/NAME` or `hf:USER/NAME@REVISION` in place of a folder.

`model_path` is the one place where such a name becomes a folder: a snapshot in the client's own cache (HF_HOME), which other
processes and other programs share. Names and sizes of the files are checked before the download, and only the files of an
exported model are downloaded. Without a network, the last snapshot that was downloaded is used. Trade-off: a branch such as
`main` is looked up on the hub whenever a model is loaded; a commit as the revision avoids that.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from ulmfit_dist.errors import UserError
from ulmfit_dist.pretrained.bundle_files import CONFIG, MAX_SIZES, REQUIRED, WEIGHTS
from ulmfit_dist.utils.log import get_logger

PREFIX = "hf:"
REFERENCE = re.compile(r"hf:([^/@\s]+/[^/@\s]+)(?:@(\S+))?")
LONGEST_CAUSE = 300
"""Maximum number of characters of another library's message in an error."""

logger = get_logger(__name__)

_pinned: dict[str, str] = {}
"""References with a commit by reference, as all ranks of a launch have agreed on."""


class Ranks(Protocol):
    """The ranks of a launch, as far as a download needs them: `distributed.collectives.Collectives`."""

    rank: int
    world_size: int

    def fail_together(self) -> AbstractContextManager[Any]: ...

    def broadcast_object(self, value: Any) -> Any: ...


def is_hub_model(run: str | Path | None) -> bool:
    """Return whether a path argument names a model of the hub."""
    return run is not None and str(run).startswith(PREFIX)


def model_path(run: str | Path) -> Path:
    """Return the folder that a path argument names: downloaded, if it is a model of the hub.

    Raises:
        UserError: as `fetch_hub_model`.
    """
    return fetch_hub_model(str(run)) if is_hub_model(run) else Path(run)


def model_paths(runs: Sequence[str | Path], ranks: Ranks) -> list[Path]:
    """Return the folders of path arguments on every rank, as `model_path`. Collective.

    Rank 0 chooses the commit of each model of the hub, the first rank of each node downloads it, and the others read it from
    the cache. Later calls of `model_path` in these processes use the same commit.

    Raises:
        UserError: on every rank, as `fetch_hub_model`.
    """
    names = [str(run) for run in runs if is_hub_model(run)]
    if ranks.world_size > 1 and names:
        commits: dict[str, str] = {}
        with ranks.fail_together():
            if ranks.rank == 0:
                commits = {name: _with_commit(name) for name in names}
        _pinned.update(ranks.broadcast_object(commits))
        with ranks.fail_together():
            if getattr(ranks, "is_local_main", True):
                for name in names:
                    fetch_hub_model(name)
    paths: list[Path] = []
    with ranks.fail_together():
        paths = [model_path(run) for run in runs]
    return paths


def fetch_hub_model(reference: str) -> Path:
    """Return the folder of an exported model of the hub in the client's cache; download it if it is not there.

    Any number of processes may call it at once: the client locks each file.

    Args:
        reference: `hf:USER/NAME`, or `hf:USER/NAME@REVISION` with a branch, a tag or a commit.

    Raises:
        UserError: a malformed reference; no such model, or no access to it; not an exported model, or a file that is too
            large; no network, and not in the cache.
    """
    reference = _pinned.get(reference, reference)
    name, revision = parse_reference(reference)
    with client_errors(lambda error: explain_pull(error, reference)):
        from huggingface_hub import snapshot_download

        commit = hub_client().resolve_revision(name, revision=revision)
        check_files(reference, _sizes(name, commit))
        logger.debug(f"{reference}: commit {commit.resolved}")
        return Path(snapshot_download(name, revision=commit, allow_patterns=[*MAX_SIZES]))


def parse_reference(reference: str) -> tuple[str, str | None]:
    """Return USER/NAME and revision, None for the default branch. Raises UserError if the reference is malformed."""
    match = REFERENCE.fullmatch(reference)
    if match is None or not is_repository_name(match[1]):
        raise UserError(f"{reference}: expected hf:USER/NAME or hf:USER/NAME@REVISION, such as hf:maria/reviews@main")
    return match[1], match[2]


def is_repository_name(name: str) -> bool:
    """Return whether a name has the form USER/NAME that the hub accepts."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1


def check_files(reference: str, sizes: Mapping[str, int]) -> None:
    """Check the files of a repository before they are downloaded.

    Args:
        sizes: sizes in bytes by path.

    Raises:
        UserError: a file of an exported model is missing or too large.
    """
    missing = [file for file in REQUIRED if file not in sizes]
    if missing:
        is_other = WEIGHTS in missing or CONFIG in missing
        raise UserError(
            f"{reference}: not {'a model of ulmfit-dist' if is_other else 'complete'} (no {', '.join(missing)}): give the "
            f"name of a model that `ulmfit-dist push` uploaded"
        )
    for file, most in MAX_SIZES.items():
        if sizes.get(file, 0) > most:
            raise UserError(
                f"{reference}: {file} has {sizes[file]:,} bytes, but at most {most:,} are allowed: use another model"
            )


@contextmanager
def client_errors(explain: Callable[[Exception], UserError | None]) -> Iterator[None]:
    """Raise the errors of the hub's client as UserErrors; hide its log, and its progress bars unless a terminal shows them.

    Args:
        explain: returns the UserError of an error; None for an error that is raised as it is.
    """
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    log = logging.getLogger("huggingface_hub")
    level, hides_bars = log.level, not sys.stderr.isatty() and not are_progress_bars_disabled()
    log.setLevel(logging.ERROR)
    if hides_bars:
        disable_progress_bars()
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        raise message from None
    finally:
        log.setLevel(level)
        if hides_bars:
            enable_progress_bars()


def explain_pull(error: Exception, reference: str) -> UserError | None:
    """Return the UserError of a failed download."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    name, revision = parse_reference(reference)
    if isinstance(error, GatedRepoError):
        return UserError(
            f"{reference}: access to this model is restricted: accept its terms on its page of the hub, then set HF_TOKEN "
            f"to a token of that account"
        )
    if isinstance(error, RepositoryNotFoundError):
        return UserError(
            f"{reference}: no such model on the hub, or a private one: check the name, or set HF_TOKEN to a token that may "
            f"read it"
        )
    if isinstance(error, RevisionNotFoundError):
        return UserError(f"{reference}: the model has no revision {revision}: give a branch, a tag or a commit of {name}")
    if status_of(error) in (401, 403):
        return UserError(
            f"{reference}: the hub rejects the token ({status_of(error)}): set HF_TOKEN to a valid one, or unset it for a "
            f"public model"
        )
    if status_of(error) is not None:
        return UserError(f"{reference}: the hub answers with status {status_of(error)} ({cause_of(error)}): try again later")
    if is_network_error(error):
        return UserError(
            f"{reference}: not in the cache, and the hub cannot be reached ({cause_of(error)}): on a machine with a network "
            f"run `hf download {name}{f' --revision {revision}' if revision else ''}` with the same HF_HOME"
        )
    if isinstance(error, OSError):
        return UserError(
            f"{reference}: cannot be downloaded ({cause_of(error)}): set HF_HOME to a writable folder with enough room"
        )
    if type(error).__name__ == "XetDownloadError" or isinstance(
        error, RuntimeError
    ):  # of hf_xet, which transfers large files
        return UserError(f"{reference}: the download failed ({cause_of(error)}): try again, or set HF_HUB_DISABLE_XET=1")
    return None


def status_of(error: BaseException) -> int | None:
    """Return the status of the hub's response that an error reports; None if there was no response."""
    from huggingface_hub.errors import HfHubHTTPError

    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    return status if status is None else int(status)


def is_network_error(error: BaseException) -> bool:
    """Return whether the hub has not been reached: no connection, offline mode, or nothing in the cache instead."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled, RevisionResolutionError

    offline = (LocalEntryNotFoundError, OfflineModeIsEnabled, RevisionResolutionError)
    causes = (error, error.__cause__)
    return any(isinstance(cause, offline) or type(cause).__module__.startswith(("httpx", "httpcore")) for cause in causes)


def cause_of(error: BaseException) -> str:
    """Return the cause of an error on one line: the hub's own message, else type and message of the innermost exception."""
    from huggingface_hub.errors import HfHubHTTPError

    while error.__cause__ is not None and not isinstance(error, (HfHubHTTPError, ValueError)):
        error = error.__cause__
    if isinstance(error, HfHubHTTPError):
        return " ".join((error.server_message or error.response.reason_phrase).split())[:LONGEST_CAUSE]
    return " ".join(f"{type(error).__name__}: {error}".split())[:LONGEST_CAUSE]


def hub_client() -> Any:
    """Return the hub's client, which reads HF_ENDPOINT, HF_TOKEN and HF_HOME."""
    from huggingface_hub import HfApi

    from ulmfit_dist import __version__

    return HfApi(library_name="ulmfit_dist", library_version=__version__)


def _with_commit(reference: str) -> str:
    """Return the reference with the commit that it names now as its revision."""
    name, revision = parse_reference(reference)
    with client_errors(lambda error: explain_pull(error, reference)):
        return f"{PREFIX}{name}@{hub_client().resolve_revision(name, revision=revision).resolved}"


def _sizes(name: str, commit: Any) -> dict[str, int]:
    """Return the sizes in bytes of the files of a commit, by path: from the cache, else from the hub."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        entries = get_cached_repo_tree(name, revision=commit)
    except CachedRepoTreeNotFoundError:
        entries = hub_client().list_repo_tree(name, revision=commit.resolved)
    return {entry.path: entry.size for entry in entries if hasattr(entry, "size")}
