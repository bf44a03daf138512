"""The objects that all stages of a run share: config, runtime, token store and tracker.

One immutable value instead of four parameters. Trade-off: a function that takes it can reach the whole config, so only
functions that need most of it do; others take a section or a value.
"""

from __future__ import annotations

from dataclasses import dataclass

from ulmfit_dist.config.schema import Config
from ulmfit_dist.data.token_store import TokenStore
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.tracking.tracker import Tracker


@dataclass(frozen=True)
class RunContext:
    """Config, runtime, token store and tracker of a run."""

    config: Config
    runtime: Runtime
    store: TokenStore
    tracker: Tracker
