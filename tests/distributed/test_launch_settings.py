"""Settings of `accelerate launch`: read, applied if the config leaves them open, refused if they contradict it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from conftest import ROOT, TINY, command_here, launch, succeed_here
from safetensors.numpy import load_file
from stores import make_store

from ulmfit_dist.config.schema import ClassifierConfig, Config, DataConfig, LMConfig, RuntimeConfig
from ulmfit_dist.data.batches import BatchShard, make_batch_shard
from ulmfit_dist.distributed.launch_settings import (
    Launcher,
    LaunchSettings,
    Named,
    launcher_argv,
    read_launch_settings,
    refuse_unsupported,
    without_script,
)
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.models.bundle import WEIGHTS
from ulmfit_dist.stages.classifier import classifier_loaders
from ulmfit_dist.stages.lm import lm_loaders

EXPORTED = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO"}
"""Variables that Accelerate exports by default."""


def read(*argv: str, environ: dict[str, str] | None = None, **exported: str) -> LaunchSettings:
    """The settings of a rank that `accelerate launch` started with these flags, in this environment."""
    return read_launch_settings({**EXPORTED, **exported}, Launcher(argv, environ or {}))


def precision_of(*argv: str, recipe: str = "auto", has_gpu: bool = True, **exported: str) -> str:
    return read(*argv, **exported).applied_to(RuntimeConfig(precision=recipe), has_gpu).precision


@pytest.fixture(autouse=True)
def default_file(tmp_path: Path):
    """Path of Accelerate's config file, which does not exist yet."""
    path = tmp_path / "default_config.yaml"
    with patch("accelerate.commands.config.default_config_file", str(path)):
        yield path


def write_config(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(["compute_environment: LOCAL_MACHINE", "distributed_type: MULTI_GPU", *lines]) + "\n")
    return path


def test_a_default_of_accelerates_changes_nothing():
    settings = read("--multi_gpu", "--num_processes", "2")
    assert settings == LaunchSettings()
    for recipe in ("auto", "fp32", "bf16", "fp16"):
        assert precision_of(recipe=recipe) == recipe
    runtime = RuntimeConfig(micro_batch_size=4)
    assert settings.applied_to(runtime, has_gpu=True) == runtime


@pytest.mark.parametrize("flag", [["--mixed_precision", "fp16"], ["--mixed-precision=fp16"]])
def test_a_flag_sets_the_precision_that_the_recipe_leaves_open(flag: list[str]):
    assert precision_of(*flag, ACCELERATE_MIXED_PRECISION="fp16") == "fp16"
    assert precision_of(*flag, ACCELERATE_MIXED_PRECISION="fp16", recipe="fp16") == "fp16"


def test_a_no_that_is_named_counts_and_agrees_with_every_full_precision():
    assert precision_of("--mixed_precision", "no") == "fp32"
    assert precision_of("--mixed_precision", "no", recipe="fp64") == "fp64"
    with pytest.raises(UserError, match=r"^accelerate launch --mixed_precision no and runtime\.precision=bf16 differ: "):
        precision_of("--mixed_precision", "no", recipe="bf16")


@pytest.mark.parametrize(("flag", "recipe"), [("bf16", "fp16"), ("fp16", "fp32"), ("bf16", "fp64")])
def test_a_recipe_with_another_precision_is_refused(flag: str, recipe: str):
    with pytest.raises(UserError) as error:
        precision_of("--mixed_precision", flag, recipe=recipe)
    assert f"--mixed_precision {flag}" in str(error.value)
    assert f"runtime.precision={recipe}" in str(error.value)


def test_fp16_without_a_gpu_is_refused_by_the_name_that_it_was_given():
    with pytest.raises(UserError, match=r"--mixed_precision fp16: fp16 needs a GPU, but none is visible"):
        precision_of("--mixed_precision", "fp16", has_gpu=False)


@pytest.mark.parametrize("name", ["fp8", "int8"])
def test_precisions_that_there_are_not_are_refused(name: str):
    with pytest.raises(UserError, match=f"does not support mixed precision {name}: use bf16, fp16 or no"):
        read(ACCELERATE_MIXED_PRECISION=name)


def test_config_files_count_after_flags_and_before_the_environment(default_file: Path, tmp_path: Path):
    write_config(default_file, "mixed_precision: bf16")
    other = write_config(tmp_path / "other.yaml", "mixed_precision: 'no'")
    bare = write_config(tmp_path / "bare.yaml")
    exported = {"ACCELERATE_MIXED_PRECISION": "bf16"}
    assert read(**exported).mixed_precision == Named("bf16", f"mixed_precision: bf16 in {default_file}")
    assert read("--cpu").mixed_precision is None  # Accelerate does not read the file then
    assert read("--config_file", str(other)).mixed_precision == Named("no", f"mixed_precision: no in {other}")
    assert read("--config_file", str(bare)).mixed_precision is None
    flag = read("--config_file", str(other), "--mixed_precision", "fp16", ACCELERATE_MIXED_PRECISION="fp16")
    assert flag.mixed_precision == Named("fp16", "accelerate launch --mixed_precision fp16")
    launched = {"ACCELERATE_MIXED_PRECISION": "fp16"}
    both = read("--config_file", str(other), environ=launched).mixed_precision
    assert both == Named("no", f"mixed_precision: no in {other}")
    variable = read("--config_file", str(bare), environ=launched).mixed_precision
    assert variable == Named("fp16", "ACCELERATE_MIXED_PRECISION=fp16")


def test_a_relative_config_file_lies_in_the_launchers_folder(tmp_path: Path):
    write_config(tmp_path / "mine.yaml", "mixed_precision: fp16")
    launcher = Launcher(["--config_file", "mine.yaml"], folder=tmp_path)
    assert read_launch_settings({"ACCELERATE_MIXED_PRECISION": "fp16"}, launcher).mixed_precision is not None
    launcher = Launcher(["--config_file", "other.yaml"], folder=tmp_path)
    with pytest.raises(UserError, match=r"other\.yaml: Accelerate's config file cannot be read"):
        read_launch_settings(EXPORTED, launcher)


def test_without_a_launcher_the_variables_count(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ulmfit_dist.distributed.launch_settings.find_launcher", lambda: None)
    environ = {"ACCELERATE_MIXED_PRECISION": "BF16", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}
    settings = read_launch_settings(environ)
    assert settings.mixed_precision == Named("bf16", "ACCELERATE_MIXED_PRECISION=BF16")
    assert settings.accumulation_steps == Named(4, "ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4")
    no = {"ACCELERATE_MIXED_PRECISION": "no"}
    assert read_launch_settings(no).mixed_precision == Named("no", "ACCELERATE_MIXED_PRECISION=no")
    for launchers in ("PMI_SIZE", "ACCELERATE_DYNAMO_BACKEND"):  # a launcher that is not found gave its default
        assert read_launch_settings({**no, launchers: "no"}).mixed_precision is None
    notebook = {"FORK_LAUNCHED": "1", "MIXED_PRECISION": "bf16"}
    assert read_launch_settings(notebook).mixed_precision == Named("bf16", "MIXED_PRECISION=bf16")
    assert read_launch_settings({**notebook, "MIXED_PRECISION": "no"}).mixed_precision is None
    assert read_launch_settings({}) == LaunchSettings()


def test_a_variable_that_a_wrapper_sets_below_the_launcher_counts():
    settings = read("--mixed_precision", "fp16", ACCELERATE_MIXED_PRECISION="bf16")
    assert settings.mixed_precision == Named("bf16", "ACCELERATE_MIXED_PRECISION=bf16")


def test_accumulation_steps_come_from_the_flag_that_accelerate_passes_on_to_deepspeed_only():
    settings = read("--gradient_accumulation_steps", "4", ACCELERATE_GRADIENT_ACCUMULATION_STEPS="2")
    flag = "accelerate launch --gradient_accumulation_steps 4"
    assert settings.accumulation_steps == Named(4, flag)
    assert settings.describe() == [f"micro-batches per rank and step: 4 ({flag})"]
    assert settings.applied_to(RuntimeConfig(), has_gpu=False) == RuntimeConfig()
    with pytest.raises(UserError, match=r"_steps 4 and runtime\.micro_batch_size=8 both set the size of a micro-batch"):
        settings.applied_to(RuntimeConfig(micro_batch_size=8), has_gpu=False)


@pytest.mark.parametrize("steps", ["0", "-1", "four", "1.5"])
def test_steps_that_are_no_number_are_refused(steps: str):
    with pytest.raises(UserError, match="give a whole number of at least 1"):
        read(ACCELERATE_GRADIENT_ACCUMULATION_STEPS=steps)


def micro_batches(steps: int, batch: int, world_size: int = 1, canonical_ranks: int | None = None) -> list[list[int]]:
    """Sizes of the micro-batches of each rank."""
    actual = []
    for rank in range(world_size):
        share = make_batch_shard(rank, world_size, RuntimeConfig(canonical_ranks=canonical_ranks))
        share = share.in_steps(Named(steps, f"--gradient_accumulation_steps {steps}"), batch, "lm.global_batch_size")
        rows = batch // share.num_canonical_ranks
        actual.append([len(piece) for _ in share.canonical_ranks for piece in share.cut(range(rows), batch)])
    return actual


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_a_rank_computes_its_rows_in_as_many_micro_batches_as_named(steps: int):
    assert micro_batches(steps, 16) == [[16 // steps] * steps]
    assert micro_batches(steps, 16, world_size=2) == [[8 // steps] * steps] * 2


def test_virtual_ranks_are_micro_batches_too():
    assert micro_batches(4, 16, canonical_ranks=2) == [[4] * 4]
    assert micro_batches(2, 16, canonical_ranks=2) == [[8] * 2]
    assert micro_batches(2, 16, world_size=2, canonical_ranks=2) == [[4] * 2] * 2  # the pieces of one rank in four steps
    with pytest.raises(UserError, match=r"as 2 canonical ranks .* cut into 3 equal micro-batches: use one of 2, 4, 8, 16$"):
        micro_batches(3, 16, canonical_ranks=2)


def test_steps_that_do_not_divide_a_ranks_rows_are_refused():
    with pytest.raises(UserError, match=r"a rank computes 6 rows of lm\.global_batch_size=12, .*: use one of 1, 2, 3, 6$"):
        micro_batches(4, 12, world_size=2)
    with pytest.raises(UserError, match=r"32 equal micro-batches"):
        micro_batches(32, 16)


def test_a_smaller_micro_batch_size_stays():
    """One that the memory has room for, found in a step that ran out of it."""
    assert BatchShard(micro_batch_size=2).in_steps(Named(2, "steps"), 16, "lm.global_batch_size").micro_batch_size == 2


def test_shares_without_named_steps_stay_as_they_are():
    share = BatchShard(micro_batch_size=3)
    assert share.in_steps(None, 8, "lm.global_batch_size") is share


@pytest.mark.parametrize(
    ("variable", "value", "name"),
    [
        ("ACCELERATE_USE_FSDP", "true", "FSDP"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "DeepSpeed"),
        ("ACCELERATE_USE_MEGATRON_LM", "true", "Megatron-LM"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "tensor, context or sequence parallelism"),
        ("ACCELERATE_IN_TPU_POD", "1", "a TPU"),
        ("PJRT_DEVICE", "TPU", "a TPU"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", r"torch\.compile of the model"),
        ("ACCELERATE_USE_SAGEMAKER", "true", "SageMaker"),
    ],
)
def test_ways_of_training_that_there_are_not_are_named_with_what_to_use(variable: str, value: str, name: str):
    refuse_unsupported({variable: "" if variable == "PJRT_DEVICE" else "no"})
    with pytest.raises(UserError, match=f"^{variable}={value} requests .*{name}.*: (use|leave|start) ") as error:
        refuse_unsupported({variable: value})
    assert "\n" not in str(error.value)


def test_ranks_that_were_launched_differently_are_refused():
    one, other = LaunchSettings(Named("bf16", "A=bf16")), LaunchSettings(Named("bf16", "--mixed_precision bf16"))
    one.check_agreement([one, other])
    for different in (LaunchSettings(), LaunchSettings(Named("bf16", "A=bf16"), Named(2, "B=2"))):
        with pytest.raises(UserError, match=r"^rank 1 was launched with .*, but rank 0 with .*: launch all nodes"):
            one.check_agreement([one, different])


@pytest.mark.parametrize(
    "command",
    [
        "/usr/bin/python /venv/bin/accelerate launch",
        "/venv/bin/accelerate launch",
        "python3 /venv/bin/accelerate-launch",
        "python -m accelerate.commands.launch",
        "python -u -m accelerate.commands.accelerate_cli launch",
        "python -m ulmfit_dist.launch",
        "python /site-packages/accelerate/commands/launch.py",
    ],
)
def test_a_launcher_is_known_by_its_command_line(command: str):
    argv = ["--multi_gpu", "train.py", "--lr", "1"]
    assert launcher_argv([*command.split(), *argv]) == argv


@pytest.mark.parametrize("command", ["bash launch/debug.sh", "python -m ulmfit_dist run a.yaml", "accelerate config", ""])
def test_other_commands_are_no_launchers(command: str):
    assert launcher_argv(command.split()) is None


def test_words_of_the_script_are_not_the_launchers():
    argv = ["--multi_gpu", "train.py", "--mixed_precision", "fp16"]
    assert without_script(argv, ["python", "-u", "train.py", "--mixed_precision", "fp16"]) == ["--multi_gpu"]
    argv = ["--mixed_precision", "bf16", "-m", "ulmfit_dist", "run", "my.yaml"]
    assert without_script(argv, ["python", "-u", "-m", "ulmfit_dist", "run", "my.yaml"]) == ["--mixed_precision", "bf16"]


JOIN = """
import sys
from ulmfit_dist.config.schema import RuntimeConfig
from ulmfit_dist.errors import UserError
from ulmfit_dist.models.bundle import WEIGHTS
from ulmfit_dist.distributed.runtime import Runtime
try:
    Runtime(RuntimeConfig())
except UserError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
"""


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.usefixtures("no_process_group")
@pytest.mark.usefixtures("bf16_lstms")
def test_a_run_computes_as_the_launcher_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "2")
    documents = [np.arange(2, 20)] * 40
    store = make_store(tmp_path / "store", documents, np.arange(40) % 3, [f"w{i}" for i in range(20)])
    config = Config(
        data=DataConfig(valid_pct=0.2),
        lm=LMConfig(global_batch_size=8, seq_len=5),
        classifier=ClassifierConfig(global_batch_size=4, seq_len=5),
    )
    runtime = Runtime(config.runtime)
    assert (runtime.precision, runtime.accelerator.mixed_precision) == ("bf16", "bf16")
    assert [len(batch.rows) for batch in next(iter(lm_loaders(config, runtime, store)[0]))] == [4, 4]
    assert [len(batch.rows) for batch in next(iter(classifier_loaders(config, runtime, store)[0]))] == [2, 2]


@pytest.mark.distributed
def test_named_steps_train_the_model_of_the_same_micro_batches_bit_by_bit(
    recipe: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    words = ["lm", recipe, f"data.path={corpus}", *TINY, "lm.phases=[{epochs: 1}]", f"runs_dir={tmp_path}"]
    words += [f"data.cache_dir={tmp_path}/cache", "tracking.wandb_mode=disabled"]
    succeed_here([*words, "name=size", "runtime.micro_batch_size=2"])
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    printed = succeed_here([*words, "name=steps", "--verbose"])
    assert "micro-batches per rank and step: 4 (ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4)\n" in printed
    size, steps = [load_file(tmp_path / name / "lm" / WEIGHTS) for name in ("size", "steps")]
    assert [name for name in size if not np.array_equal(size[name], steps[name])] == []
    refused = command_here([*words, "name=both", "runtime.micro_batch_size=2"])
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "_STEPS=4 and runtime.micro_batch_size=2 both set" in refused.stderr


SAY = """
import json, os, sys
from dataclasses import asdict
from ulmfit_dist.distributed.launch_settings import read_launch_settings
line = json.dumps([os.environ["RANK"], sys.argv[1:], asdict(read_launch_settings())])
os.write(1, f"{line}\\n".encode())
"""


@pytest.mark.parametrize("module", ["accelerate.commands.launch", "ulmfit_dist.launch"])
def test_every_rank_finds_what_its_launcher_names(module: str, tmp_path: Path):
    (tmp_path / "say.py").write_text(SAY)
    script = ["say.py", "--mixed_precision", "bf16"]  # its own option, which is not the launcher's
    config_file = ["--config_file", ROOT / "configs/accelerate/multi_gpu.yaml"]
    flags = [*config_file, "--num_processes", 2, "--mixed_precision", "fp16", "--gradient-accumulation-steps=4"]
    named = launch(["-m", module, *flags, *script], cwd=tmp_path, real=True)
    silent = launch(["-m", module, *config_file, "--num_processes", 1, *script], cwd=tmp_path, real=True)
    assert (named.returncode, silent.returncode) == (0, 0), named.stderr + silent.stderr
    expected = {
        "mixed_precision": {"value": "fp16", "source": "accelerate launch --mixed_precision fp16"},
        "accumulation_steps": {"value": 4, "source": "accelerate launch --gradient_accumulation_steps 4"},
    }
    ranks = sorted(map(json.loads, named.stdout.splitlines()))
    assert ranks == [[rank, script[1:], expected] for rank in ("0", "1")]
    (alone,) = map(json.loads, silent.stdout.splitlines())
    assert alone == ["0", script[1:], {"mixed_precision": None, "accumulation_steps": None}]


def test_two_ranks_refuse_what_the_recipe_contradicts_by_one_line(recipe: Path, corpus: Path, tmp_path: Path):
    flags = ["--multi_gpu", "--num_processes", 2, "--mixed_precision", "no"]
    words = [recipe, f"data.path={corpus}", *TINY, f"runs_dir={tmp_path}", f"data.cache_dir={tmp_path}/cache"]
    words += ["runtime.precision=bf16"]
    result = launch(["-m", "ulmfit_dist.launch", *flags, "-m", "ulmfit_dist", "run", *words], real=True)
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("ulmfit-dist: error: accelerate launch --mixed_precision no and runtime.precision=bf16 differ: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("bf16_lstms")
def test_nodes_that_were_launched_differently_end_together(tmp_path: Path):
    (tmp_path / "join.py").write_text(JOIN)
    variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "LOCAL_RANK": "0", "ACCELERATE_USE_CPU": "true"}
    environ = {**os.environ, **variables, "PYTHONPATH": str(ROOT), "MASTER_PORT": free_port()}
    nodes = [
        subprocess.Popen(
            [sys.executable, tmp_path / "join.py"],
            env={**environ, "RANK": str(rank), "ACCELERATE_MIXED_PRECISION": precision},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, precision in enumerate(("bf16", "no"))
    ]
    try:
        for node in nodes:
            line = node.communicate(timeout=120)[1]
            assert node.returncode == 2, line
            assert line == (
                "rank 1 was launched with ACCELERATE_MIXED_PRECISION=no, but rank 0 with ACCELERATE_MIXED_PRECISION=bf16: "
                "launch all nodes with the same flags and variables\n"
            )
    finally:
        for node in nodes:
            node.kill()
