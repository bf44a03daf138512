"""Tests of the precision of a run: a function of the hardware, the config, and the run's checkpoints."""

import json
import os
from pathlib import Path

import pytest
from made_classifiers import lettered_store, make_classifier

from ulmfit_dist.config.schema import RuntimeConfig
from ulmfit_dist.distributed import precision as precision_module
from ulmfit_dist.distributed.precision import (
    auto_precision,
    check_compression,
    common_precision,
    cpu_precision,
    gpu_precision,
    precision_of_run,
    read_cpuinfo,
    resolve_precision,
)
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import UserError
from ulmfit_dist.stages.evaluate import precision_of_models

pytestmark = pytest.mark.usefixtures("no_process_group")

INTEL, AMD = "GenuineIntel", "AuthenticAMD"


def cpuinfo(vendor: str, flags: str) -> str:
    one = f"vendor_id\t: {vendor}\nmodel name\t: a CPU\nflags\t\t: fpu avx2 {flags}\nbugs\t\t: amx_bf16\n"
    return f"processor\t: 0\n{one}\nprocessor\t: 1\n{one}"


def test_precision_is_what_the_machine_can_do(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(precision_module, "has_bf16_lstms", lambda: True)
    assert resolve_precision("bf16", has_gpu=False) == "bf16"
    with pytest.raises(UserError, match="fp16 needs a GPU, but none is visible: use bf16"):
        resolve_precision("fp16", has_gpu=False)
    with pytest.raises(UserError, match="fp64"):
        resolve_precision("fp64", has_gpu=True)


@pytest.mark.parametrize(
    ("limit", "cause"), [("AVX2", "DNNL_MAX_CPU_ISA=AVX2 disables it"), ("", "this CPU does not have it")]
)
def test_bf16_without_avx512_is_refused_on_a_cpu(limit: str, cause: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(precision_module, "has_bf16_lstms", lambda: False)
    monkeypatch.setattr(precision_module, "isa_limit", lambda: limit)
    with pytest.raises(UserError, match=rf"^runtime\.precision=bf16 needs AVX-512 on a CPU, but {cause}: use fp32 or auto$"):
        resolve_precision("bf16", has_gpu=False)
    assert resolve_precision("bf16", has_gpu=True) == "bf16"


@pytest.mark.parametrize(
    ("vendor", "flags", "expected"),
    [
        (AMD, "avx512f avx512_bf16", "bf16"),  # Zen 4 and 5
        (AMD, "avx512f", "fp32"),
        (AMD, "", "fp32"),
        (INTEL, "avx512f avx512_bf16 amx_bf16 amx_tile", "bf16"),  # Sapphire Rapids
        (INTEL, "avx512f avx512_bf16", "fp32"),  # Cooper Lake
        (INTEL, "avx512f amx_int8 amx_tile", "fp32"),
    ],
)
def test_auto_on_a_cpu_is_bf16_where_the_cpu_has_it_fast(vendor: str, flags: str, expected: str):
    assert cpu_precision(cpuinfo(vendor, flags), True, "AVX512", "")[0] == expected


def test_amx_counts_only_where_the_operating_system_permits_it():
    text = cpuinfo(INTEL, "avx512_bf16 amx_bf16")
    assert [cpu_precision(text, permitted, "AVX512", "")[0] for permitted in (True, False)] == ["bf16", "fp32"]


@pytest.mark.parametrize("aten", ["AVX2", "DEFAULT", "NO AVX"])
@pytest.mark.parametrize("vendor", [INTEL, AMD])
def test_a_limit_on_torchs_kernels_gives_fp32(vendor: str, aten: str):
    assert cpu_precision(cpuinfo(vendor, "avx512_bf16 amx_bf16"), True, aten, "")[0] == "fp32"


@pytest.mark.parametrize(
    ("limit", "intel", "amd"),
    [
        ("AVX2", "fp32", "fp32"),
        ("avx512_core_vnni", "fp32", "fp32"),
        ("AVX512_CORE_BF16", "fp32", "bf16"),
        ("AVX512_CORE_AMX", "bf16", "bf16"),
        ("ALL", "bf16", "bf16"),
        ("", "bf16", "bf16"),
    ],
)
def test_a_limit_on_onednns_kernels_gives_fp32_where_it_takes_bf16(limit: str, intel: str, amd: str):
    assert cpu_precision(cpuinfo(INTEL, "avx512_bf16 amx_bf16"), True, "AVX512", limit)[0] == intel
    assert cpu_precision(cpuinfo(AMD, "avx512_bf16"), False, "AVX512", limit)[0] == amd


def test_an_unknown_cpu_computes_in_fp32(tmp_path: Path):
    assert read_cpuinfo(tmp_path / "cpuinfo") == ""
    assert cpu_precision("", False, "AVX512", "")[0] == "fp32"
    assert cpu_precision("processor\t: 0\nFeatures\t: fp asimd bf16\n", False, "DEFAULT", "")[0] == "fp32"


def test_auto_reads_this_machines_cpu_and_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(precision_module.torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(precision_module.torch.cpu, "_init_amx", lambda: False)
    monkeypatch.setattr(precision_module, "read_cpuinfo", lambda: cpuinfo(AMD, "avx512_bf16"))
    assert auto_precision(has_gpu=False) == ("bf16", "the CPU is an AMD CPU with AVX512-BF16")
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", "AVX2")
    assert auto_precision(has_gpu=False) == ("fp32", "DNNL_MAX_CPU_ISA=AVX2 disables AVX512-BF16")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "ALL")  # oneDNN prefers its newer name
    assert resolve_precision("auto", has_gpu=False) == "bf16"


@pytest.mark.parametrize(
    ("capability", "cudnn", "expected"),
    [((9, 0), 91_300, "bf16"), ((8, 0), 91_900, "bf16"), ((9, 0), 91_200, "fp16"), ((7, 5), 91_900, "fp16")],
)
def test_auto_on_a_gpu_is_bf16_where_gpu_and_cudnn_have_it(capability: tuple[int, int], cudnn: int, expected: str):
    assert gpu_precision(capability, cudnn)[0] == expected


def test_ranks_agree_on_what_all_can_do():
    assert common_precision(["bf16", "bf16"]) == "bf16"
    assert common_precision(["bf16", "fp32"]) == "fp32"
    assert common_precision(["bf16", "fp16"]) == "fp16"


@pytest.mark.usefixtures("bf16_lstms")
def test_a_run_resumes_in_the_precision_of_its_newest_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(precision_module, "auto_precision", lambda has_gpu: ("fp32", ""))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert precision_of_run(tmp_path) is None
    for age, (step, precision) in enumerate({"2": "fp32", "1": "bf16", "3": "damaged"}.items()):
        state = tmp_path / f"checkpoints/lm/step-{step}/state.json"
        state.parent.mkdir(parents=True)
        state.write_text("{" if precision == "damaged" else f'{{"precision": "{precision}"}}')
        os.utime(state, (age, age))
    assert Runtime(RuntimeConfig(precision="auto"), run_dir=tmp_path).precision == "bf16"
    assert Runtime(RuntimeConfig(precision="auto")).precision == "fp32"
    assert Runtime(RuntimeConfig(precision="fp32"), run_dir=tmp_path).precision == "fp32"


def test_gradients_are_compressed_to_bf16_between_gpus_only():
    with pytest.raises(UserError, match="use fp16 or null between CPUs"):
        check_compression("bf16", "fp32", has_gpu=False)
    for precision in ("fp32", "bf16", "fp16"):
        check_compression("bf16", precision, has_gpu=True)


def test_gradients_of_a_scaled_loss_are_not_compressed_to_fp16():
    """torch's hook adds them in fp16, where scaled gradients overflow."""
    with pytest.raises(UserError, match=r"runtime\.gradient_compression=fp16 .* runtime\.precision=fp16.*: set .*=bf16"):
        check_compression("fp16", "fp16", has_gpu=True)
    for precision in ("fp32", "bf16"):
        check_compression("fp16", precision, has_gpu=True)


def test_a_runtime_refuses_a_compression_and_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch):
    from accelerate import PartialState

    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(UserError, match="use fp16 or null between CPUs"):
        Runtime(RuntimeConfig(precision="fp32", gradient_compression="bf16"))
    assert PartialState._shared_state == {}


@pytest.mark.usefixtures("bf16_lstms")
def test_models_are_evaluated_in_the_precision_that_they_were_trained_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    store = lettered_store(tmp_path / "store")
    runs = [make_classifier(tmp_path / name, store) for name in ("first", "second")]
    assert precision_of_models(runs) == "auto"  # exported before models named it

    def trained_in(run: Path, precision: str) -> None:
        training = {"data_fingerprint": "x", "precision": precision}
        (run / "classifier" / "training.json").write_text(json.dumps(training))

    for run in runs:
        trained_in(run, "fp32")
    assert precision_of_models(runs) == "fp32"
    trained_in(runs[1], "bf16")
    assert precision_of_models(runs[1:]) == "bf16"
    assert precision_of_models(runs) == "auto"
    assert capsys.readouterr().err == ""
    trained_in(runs[0], "fp16")
    assert precision_of_models(runs[:1]) == "auto"
    assert "fp16 needs a GPU" in capsys.readouterr().err
