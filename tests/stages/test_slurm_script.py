"""Batch scripts of `submit`."""

import re
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

from ulmfit_dist.cli.main import main
from ulmfit_dist.stages import slurm

COMMAND = ["submit", "configs/quickstart.yaml", "lm.global_batch_size=512", "--dry-run"]


def directives(script: str) -> dict[str, str]:
    """Return the sbatch options of a script."""
    return dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.+))?$", script, re.MULTILINE))


def test_the_script_asks_for_what_the_user_asks_for_and_keeps_the_rest(capsys: pytest.CaptureFixture[str]):
    options = "--nodes 2 --gpus-per-node 4 --time 1:00 --account nlp --sbatch constraint=a100 --sbatch=exclusive".split()
    assert main([*COMMAND, *options]) == 0
    script = capsys.readouterr().out
    asked = directives(script)
    given = directives((ROOT / "slurm/multi_node.sbatch").read_text())
    assert asked.items() >= {"nodes": "2", "gpus-per-node": "4", "time": "1:00", "account": "nlp"}.items()
    assert asked.items() >= {"constraint": "a100", "exclusive": "", "job-name": "quickstart"}.items()
    assert asked["signal"] == given["signal"].split()[0]
    assert asked.keys() >= given.keys()
    assert "requeue" in asked
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_device_is_that_of_the_job_not_of_this_machine(device: str, capsys: pytest.CaptureFixture[str]):
    assert main([*COMMAND, "--device", device]) == 0
    assert f"on_nodes run configs/quickstart.yaml lm.global_batch_size=512 --device={device}\n" in capsys.readouterr().out


def test_a_job_may_train_rounds_of_self_training(capsys: pytest.CaptureFixture[str]):
    assert main([*COMMAND, "--command", "self-train", "--fresh"]) == 0
    assert "\non_nodes self-train configs/quickstart.yaml lm.global_batch_size=512 --fresh\n" in capsys.readouterr().out


def test_words_with_spaces_and_quotes_stay_words(tmp_path: Path):
    words = ["my recipe.yaml", "lm.phases=[{epochs: 1, lr: 1e-2}]", "data.path=it's"]
    script = slurm.batch_script("run", words, {}, tmp_path / "a b" / "100%", tmp_path / "a b")
    assert directives(script)["output"] == f'"{tmp_path}/a b/100%%/%x-%j.log"'
    body = script.replace("source ", ": ").partition("\n: ")[2].partition("\n")[2]
    functions = "prepare_job() { printf '%s\\n' \"$@\"; }\non_nodes() { :; }\n"
    printed = subprocess.run(["bash", "-c", functions + body], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines() == words


def test_without_slurm_and_with_wrong_words_it_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main([*COMMAND[:-1], f"runs_dir={tmp_path}"]) == 2
    assert "sbatch not found" in capsys.readouterr().err
    assert main([*COMMAND, "--nodes", "0"]) == 2
    assert "--nodes 0: give a whole number of at least 1" in capsys.readouterr().err
    assert main([*COMMAND, "--sbatch", "array=0-3"]) == 2
    assert "--sbatch array is set by submit" in capsys.readouterr().err
    for option in ("", "comment=a\nrm", 'comment="'):
        assert main([*COMMAND, "--sbatch", option]) == 2
    assert main([*COMMAND, "lm.bathc=3"]) == 2
    assert not list(tmp_path.iterdir())
