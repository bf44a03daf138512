"""Commands by name. Each is a module with `add_parser(subparsers)` and `run(args)`, which imports what it needs."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Protocol

from ulmfit_dist.cli.arguments import Subparsers
from ulmfit_dist.cli.commands import (
    baseline,
    classifier,
    compare,
    config,
    cross_validate,
    dashboard,
    doctor,
    ensemble,
    evaluate,
    export,
    generate,
    init,
    lm,
    lr_find,
    predict,
    prepare,
    pretrain,
    pretrained,
    push,
    report,
    run,
    self_train,
    show_batch,
    show_results,
    submit,
)


class Command(Protocol):
    """A module of this package."""

    def add_parser(self, subparsers: Subparsers) -> None: ...

    def run(self, args: argparse.Namespace) -> None: ...


COMMANDS: Mapping[str, Command] = {
    "init": init,
    "run": run,
    "pretrain": pretrain,
    "prepare": prepare,
    "lm": lm,
    "classifier": classifier,
    "cross-validate": cross_validate,
    "self-train": self_train,
    "baseline": baseline,
    "lr-find": lr_find,
    "show-batch": show_batch,
    "show-results": show_results,
    "evaluate": evaluate,
    "predict": predict,
    "ensemble": ensemble,
    "compare": compare,
    "generate": generate,
    "export": export,
    "push": push,
    "report": report,
    "dashboard": dashboard,
    "submit": submit,
    "doctor": doctor,
    "config": config,
    "pretrained": pretrained,
}
"""Commands by name, in the order of `--help`."""
