"""Number of processes of the launch scripts, and input that they refuse before they start any."""

import pytest
from conftest import ROOT

from ulmfit_dist.config.loading import load_config
from ulmfit_dist.errors import UserError
from ulmfit_dist.launch.process_count import check_processes, choose_processes, largest_fitting, main

QUICKSTART = ROOT / "configs/quickstart.yaml"


@pytest.mark.parametrize(
    ("num_gpus", "used"), [(0, 0), (1, 1), (2, 2), (3, 2), (4, 4), (5, 4), (6, 4), (7, 4), (8, 8), (16, 16), (64, 16)]
)
def test_the_quick_start_uses_as_many_gpus_as_share_its_batches(num_gpus: int, used: int):
    assert largest_fitting(load_config(QUICKSTART), num_gpus) == used


def test_idle_gpus_are_named_with_the_batch_sizes_that_would_use_them(capsys: pytest.CaptureFixture[str]):
    assert choose_processes(load_config(QUICKSTART), 5) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: using 4 of 5 GPUs, 1 is idle: lm.global_batch_size=16 cannot be shared evenly by 5")
    assert "make it 15 or 20; classifier.global_batch_size=16" in line
    assert choose_processes(load_config(QUICKSTART), 4) == 4
    assert capsys.readouterr().err == ""


def test_both_batches_must_be_shared():
    assert largest_fitting(load_config(QUICKSTART, ["lm.global_batch_size=12"]), 8) == 4
    alone = load_config(QUICKSTART, ["lm.global_batch_size=12", "classifier.encoder=runs/other"])
    assert largest_fitting(alone, 8) == 8  # such a run trains no language model


def test_a_batch_that_no_number_of_processes_can_share_is_refused():
    config = load_config(QUICKSTART, ["lm.global_batch_size=15"])
    assert largest_fitting(config, 2) == 0
    for call in (check_processes, choose_processes):
        with pytest.raises(UserError, match=r"=15 cannot be shared evenly by 2 (canonical )?ranks: make it 14 or 16$"):
            call(config, 2)


def test_virtual_ranks_share_the_batch_where_there_are_more_of_them():
    assert largest_fitting(load_config(QUICKSTART, ["runtime.canonical_ranks=8"]), 3) == 2
    with pytest.raises(UserError, match=r"lm\.global_batch_size=12 cannot be shared evenly by 8 canonical ranks"):
        check_processes(load_config(QUICKSTART, ["runtime.canonical_ranks=8", "lm.global_batch_size=12"]), 2)


def test_a_number_of_processes_that_cannot_share_a_batch_is_one_line(capsys: pytest.CaptureFixture[str]):
    assert main(["check", "6", str(QUICKSTART), "--fresh"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "lm.global_batch_size=16 cannot be shared evenly by 6 ranks: make it 12 or 18, or start 4 processes" in line
    assert main(["check", "6", str(QUICKSTART), "lm.global_batch_size=12", "classifier.global_batch_size=12"]) == 0
    assert main(["choose", "3", str(QUICKSTART), "--fresh"]) == 0
    assert capsys.readouterr().out == "2\n"


@pytest.mark.parametrize("words", [[], [str(QUICKSTART), "lm.bathc=3"], ["no.yaml"]])
def test_a_config_that_is_wrong_or_missing_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(["choose", "2", *words]) == 2
    assert capsys.readouterr().err.startswith("ulmfit-dist: error: ")
