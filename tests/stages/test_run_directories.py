"""Run directories hold one kind of run: no training, ensemble or self-training overwrites another kind."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ulmfit_dist.config.schema import Config
from ulmfit_dist.errors import UserError
from ulmfit_dist.models.ensemble_file import EnsembleFile, EnsembleMember
from ulmfit_dist.stages.run_directories import (
    SELF_TRAINING,
    check_free_for_ensemble,
    check_free_for_self_training,
    check_free_for_training,
)


def hold(run: Path, kind: str) -> None:
    """Make a run directory that holds something of a kind."""
    run.mkdir()
    if kind == "ensemble":
        EnsembleFile("directions", "", True, [EnsembleMember("../a", "", 1.0)]).write(run)
    if kind in ("training", "self-training"):
        (run / "classifier").mkdir()
    if kind == "begun training":
        (run / "checkpoints" / "lm").mkdir(parents=True)
    if kind in ("self-training", "begun self-training"):
        (run / SELF_TRAINING).write_text("{}")


@pytest.mark.parametrize(
    ("check", "allowed"),
    [
        (check_free_for_training, {"nothing", "training", "begun training"}),
        (check_free_for_self_training, {"nothing", "self-training", "begun self-training"}),
        (lambda config: check_free_for_ensemble(config, "directions"), {"nothing", "ensemble"}),
        (lambda config: check_free_for_ensemble(config, "folds"), {"nothing"}),
    ],
)
def test_a_run_directory_is_for_one_kind(tmp_path: Path, check: Callable[[Config], None], allowed: set[str]):
    for kind in ("nothing", "training", "begun training", "ensemble", "self-training", "begun self-training"):
        config = Config(name=kind.replace(" ", "-"), runs_dir=str(tmp_path))
        hold(config.run_dir, kind)
        if kind in allowed:
            check(config)
        else:
            with pytest.raises(UserError, match=rf"{config.name} holds an? .*another name, such as name={config.name}-"):
                check(config)
