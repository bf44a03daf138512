"""The batch scripts under a real SLURM: two nodes, real signals, real time limits, a node that dies."""

import compileall
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, Job, cluster_of_two, job_processes, missing_programs, wait_until
from conftest import RECIPE, ROOT, TINY, store_in, succeed
from installed import build, environment, install
from killing import same_bits

from ulmfit_dist.tracking.wandb_files import records

pytestmark = pytest.mark.skipif(
    bool(missing_programs()) and not os.environ.get("ULMFIT_DIST_NEED_SLURM"),
    reason=f"SLURM is not installed ({', '.join(missing_programs())} missing): apt-get install slurm-wlm munge",
)
SHORT = ("lm.phases=[{epochs: 1, lr: 1e-2}]", "classifier.phases=[{epochs: 1, lr: 2e-2}]")
WITHOUT_GPU = {"ACCELERATE_USE_CPU": "false", "CUDA_VISIBLE_DEVICES": ""}
Submit = Callable[..., Job]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with cluster_of_two([Path(sys.prefix), Path(sys.base_prefix)]) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def house(cluster: Cluster) -> Path:
    """A copy of the project in a path with spaces; the environment that runs the tests is the one that is activated."""
    house = cluster.folder / "a house with spaces"
    for name in ("launch", "configs", "slurm", "ulmfit_dist"):
        shutil.copytree(ROOT / name, house / name, ignore=shutil.ignore_patterns("__pycache__"))
    compileall.compile_dir(house / "ulmfit_dist", quiet=1)  # once, not in each rank: another user cannot write there
    return house


@pytest.fixture
def submit(cluster: Cluster, house: Path, tmp_path: Path, corpus: Path, recipe: Path) -> Iterator[Submit]:
    """Submits a script of the house with the tests' recipe, from another folder; at the end it puts the cluster in order."""
    jobs = []
    fixed = [f"data.path={corpus}", *TINY, f"runs_dir={tmp_path}/runs"]

    def submit(script: str, *words: str, options: tuple[str, ...] = (), **env: str) -> Job:
        words = (str(recipe), *fixed, *words)
        jobs.append(cluster.submit(*options, house / "slurm" / script, *words, cwd=tmp_path, **{**surroundings(), **env}))
        return jobs[-1]

    yield submit
    cluster.start_dead_nodes()
    for job in jobs:
        with suppress(AssertionError):
            cluster.ask("scancel", job.number)
            wait_until(lambda: not cluster.ask("squeue", "-h"), "the end of the job", 40)


def surroundings() -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {"PATH": path, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}


def wait_for_step(job: Job, run: Path, stage: str, step: int = 1) -> None:
    """Until a stage has come to a step, and further than it is now."""

    def newest() -> int:
        return max((int(path.name[5:]) for path in run.glob(f"checkpoints/{stage}/step-*")), default=0)

    def is_there() -> bool:
        if newest() >= step:
            return True
        assert job.state in ("PENDING", "RUNNING"), job.log()
        return False

    step = max(step, newest() + 1)
    wait_until(is_there, f"{stage} step {step}", 90, job.log)


def test_two_nodes_train_the_quick_starts_language_model_to_the_weights_of_one_process(
    cluster: Cluster, house: Path, tmp_path: Path
):
    words = ["data.max_documents=60", "tokenizer.max_vocab=2000", "lm.phases=[{epochs: 1, lr: 1e-2}]", SHORT[1]]
    words += ["runtime.precision=fp32"]  # auto measures the machine, which may be busy with one and not with the other
    work = cluster.folder / "of another user"
    work.mkdir()
    user = "nobody" if os.geteuid() == 0 else None
    if user:
        shutil.chown(work, user)
    script = "../a house with spaces/slurm/multi_node.sbatch"
    environment = {**surroundings(), **{name: str(work) for name in ("FASTAI_HOME", "HF_HOME", "MPLCONFIGDIR")}}
    job = cluster.submit(
        script, "../a house with spaces/configs/quickstart.yaml", *words, cwd=work, user=user, **environment
    )
    succeed(["run", house / "configs/quickstart.yaml", *words, f"runs_dir={tmp_path}", f"data.cache_dir={tmp_path}/cache"])
    job.wait_for("COMPLETED", "FAILED")
    assert job.state == "COMPLETED", job.log()
    assert same_bits(work / "runs/quickstart", tmp_path / "quickstart")
    assert json.loads((work / "runs/quickstart/summary.json").read_text())["world_size"] == 2
    assert (work / "runs/quickstart").owner() == (user or work.owner())
    assert "report: runs/quickstart/report.html" in (work / f"ulmfit-{job.number}.log").read_text()
    others = (work / f"ulmfit-{job.number}-node1.log").read_text()
    assert (
        "ulmfit-dist:" not in others
    )  # torch's launcher may complain on a busy machine that the first node's has left before it


def test_a_job_that_is_stopped_in_every_way_ends_as_one_left_alone(
    cluster: Cluster, submit: Submit, alone: Path, run_dirs: dict[str, Path], tmp_path: Path
):
    run = tmp_path / "runs/run"
    words = [*RECIPE, "name=run", f"data.cache_dir={run_dirs['caches']}/cache1", "--fresh"]
    inside_another = {"SLURM_ARRAY_JOB_ID": "999", "SLURM_ARRAY_TASK_ID": "0", "SLURM_RESTART_COUNT": "7"}
    job = submit("multi_node.sbatch", *words, options=("--time=5", "--signal=USR1@30"), **inside_another)
    wait_for_step(job, run, "lm", 20)
    for signals in ("USR1", "USR1", "TERM"):
        cluster.ask("scancel", f"--signal={signals}", job.number)
    job.wait_for_requeue(1)

    wait_for_step(job, run, "lm", 60)
    let_the_time_run_out(job)
    job.wait_for_requeue(2)
    cluster.ask("scontrol", "update", f"JobId={job.number}", "TimeLimit=5")

    wait_for_step(job, run, "classifier")
    cluster.ask("scontrol", "requeue", job.number)
    job.wait_for_requeue(3)

    wait_for_step(job, run, "classifier")
    cluster.ask("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=true")
    job.wait_for_requeue(4)

    wait_for_step(job, run, "classifier")
    cluster.kill_node("node2")
    began = time.monotonic()
    wait_until(lambda: "ended with exit code" in job.log(), "the job's failure", 60, job.log)
    assert "exited without an error: it was killed" in job.log()
    cluster.start_node("node2")
    job.wait_for("FAILED", seconds=60 - (time.monotonic() - began))
    cluster.ask("scontrol", "requeue", job.number)
    job.wait_for_requeue(5)

    job.wait_for("COMPLETED", "FAILED")
    log = job.log()
    assert job.state == "COMPLETED", log
    assert len(re.findall(r"stopped by SIG\w+ after step \d+: lm is saved", log)) == 4  # twice, on both nodes
    assert len(re.findall(r"stopped by SIG\w+ after step \d+: classifier is saved", log)) == 4
    assert log.count(": resumes from ") == 5
    assert "Traceback" not in log
    assert same_bits(run, alone / "run")
    assert not list(tmp_path.glob(".*"))
    assert len({path.name.split("-")[-1] for path in (run / "wandb").glob("offline-run-*")}) == 1


def let_the_time_run_out(job: Job) -> None:
    """Let a job end in 40 seconds, so that it has the warning, 30 seconds before its end.

    SLURM looks at the time every half a minute, and wakes ranks that are suspended.
    """
    ranks = [pid for pid in job_processes(job.cluster.environment["SLURM_CONF"]) if is_rank(pid)]
    assert len(ranks) == 2
    for pid in ranks:
        os.kill(pid, signal.SIGSTOP)
    job.cluster.ask("scontrol", "update", f"JobId={job.number}", "EndTime=now+40")


def is_rank(pid: int) -> bool:
    """Return True for a rank, not for its launcher or a process of W&B's."""
    with suppress(OSError):
        words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        is_ours = b"\0ulmfit_dist\0" in Path(f"/proc/{pid}/cmdline").read_bytes()
        return is_ours and any(word.startswith(b"LOCAL_RANK=") for word in words)
    return False


def run_records(path: Path) -> list[Any]:
    return [record.run for record in records(path) if record.HasField("run")]


def test_an_array_of_three_seeds_is_three_runs_in_one_group(submit: Submit, tmp_path: Path):
    job = submit("array.sbatch", *SHORT, "name=reviews", f"data.cache_dir={tmp_path}/cache", options=("--cpus-per-task=5",))
    runs = [tmp_path / f"runs/reviews-seed{seed}" for seed in (42, 43, 44)]
    wait_until(lambda: all((run / "classifier").is_dir() for run in runs), "three runs", 120, job.log)
    for task in range(3):
        log = tmp_path / f"ulmfit-{job.number}_{task}.log"
        wait_until(lambda log=log: "wandb beta leet" in log.read_text(), log.name, 120)
    metadata = []
    for run in runs:
        (path,) = (run / "wandb").glob("offline-run-*/run-*.wandb")
        wait_until(
            lambda path=path: bool(run_records(path)), f"W&B's service to write {path}", 120
        )  # it ends after the ranks
        metadata += run_records(path)[:1]
    assert [fact.display_name for fact in metadata] == [run.name for run in runs]
    assert {fact.run_group for fact in metadata} == {"reviews"}
    assert len({fact.run_id for fact in metadata}) == 3
    assert not any(same_bits(runs[0], other) for other in runs[1:])


def test_two_nodes_prepare_the_bytes_of_one(submit: Submit, run_dirs: dict[str, Path], tmp_path: Path):
    job = submit("prepare.sbatch", f"data.cache_dir={tmp_path}/cache", NETWORK_INTERFACE="lo")
    job.wait_for("COMPLETED", "FAILED")
    assert job.state == "COMPLETED", job.log()
    ours, reference = store_in(tmp_path / "cache"), store_in(run_dirs["caches"] / "cache1")
    names = {path.name for path in reference.iterdir()}
    assert {path.name for path in ours.iterdir()} == names
    for name in names:
        assert (ours / name).read_bytes() == (reference / name).read_bytes(), name


def test_submit_of_an_installed_wheel_runs_a_job_that_reads_its_nodes_own_copy_of_the_tokens(
    cluster: Cluster, corpus: Path, tmp_path: Path
):
    pytest.importorskip("hatchling", reason="builds the wheel: pip install hatchling")
    programs = install(build("wheel", tmp_path / "wheel"), cluster.folder / "venv")
    words = ["quickstart", "data.source=folder", f"data.path={corpus}", *TINY, *SHORT, "name=sent", "runs_dir=my runs"]
    words += [f"data.cache_dir={tmp_path}/cache", "data.node_cache_dir=${oc.env:SLURM_TMPDIR,local disk}", "--time", "5"]
    surroundings = environment(SLURM_CONF=cluster.environment["SLURM_CONF"], PATH=cluster.environment["PATH"])
    command = [programs / "ulmfit-dist", "submit", *words, "--device", "cpu"]
    done = subprocess.run(command, cwd=tmp_path, env=surroundings, capture_output=True, text=True, check=True)
    job = Job(cluster, done.stdout.split()[1].strip(":"))
    log = tmp_path / f"my runs/sent/slurm/sent-{job.number}.log"
    assert str(log) in done.stdout
    job.wait_for("COMPLETED", "FAILED")
    assert job.state == "COMPLETED", job.log()
    assert "report: my runs/sent/report.html" in log.read_text()
    assert "no GPU in this job" not in log.read_text()  # the job is not asked to use one
    assert json.loads((tmp_path / "my runs/sent/environment.json").read_text())["revision"] is None  # not that of a checkout
    assert store_in(tmp_path / "local disk").name == store_in(tmp_path / "cache").name
    assert "(local disk/" in log.read_text()


def test_a_job_that_gets_nowhere_leaves_the_queue(cluster: Cluster, submit: Submit):
    job = submit("single_node.sbatch", "lm.phases=[{epochs: 900}]", MAX_REQUEUES="1")
    for restart in (1, 2):
        wait_until(lambda: any(map(is_rank, job_processes(cluster.environment["SLURM_CONF"]))), "a rank", 30, job.log)
        cluster.ask("scancel", "--signal=USR1", job.number)
        if restart == 1:
            job.wait_for_requeue(restart)
    job.wait_for("FAILED", seconds=30)
    assert "requeued 1 time(s) without a step of progress" in job.log()


def test_a_job_that_is_cancelled_is_saved_and_stays_out_of_the_queue(cluster: Cluster, submit: Submit, tmp_path: Path):
    job = submit("single_node.sbatch", "lm.phases=[{epochs: 900}]", "checkpoint.interval_steps=7", PROCESSES_PER_NODE="2")
    wait_for_step(job, tmp_path / "runs/run", "lm")
    cluster.ask("scancel", job.number)
    wait_until(lambda: "ended by SLURM" in job.log(), "the end", 40, job.log)
    assert re.search(r"stopped by SIG\w+ after step \d+: lm is saved", job.log())
    job.wait_for("CANCELLED", seconds=20)
    assert "2 rank(s) each" in job.log()


def test_wrong_words_end_the_job_before_anything_is_started(submit: Submit, tmp_path: Path):
    (tmp_path / "sweep.txt").write_text("# rates\nlm.drop_mult=0.5\nname=it's\n")
    jobs = {
        submit("multi_node.sbatch", "lm.bathc=3"): "unknown key lm.bathc",
        submit("multi_node.sbatch", "--device", "gpu"): "--device gpu: give auto, cpu or cuda",
        submit("multi_node.sbatch", "--device", "cuda"): "--device cuda, but ACCELERATE_USE_CPU=true: unset it",
        submit("single_node.sbatch", "--device=cuda", **WITHOUT_GPU): "--device cuda: no GPU in this job: request GPUs with",
        submit("array.sbatch", SWEEP="sweep.txt", options=("--array=1",)): "sweep.txt, task 1: No closing quotation",
        submit("array.sbatch", SWEEP="sweep.txt", options=("--array=2",)): "sweep.txt has 2 line(s) of arguments",
    }
    for job, output in jobs.items():
        job.wait_for("FAILED", seconds=30)
        assert job.fact("ExitCode") == "2:0"
        assert output in job.log()
        assert len(job.log().splitlines()) == 2, job.log()  # the name of the log, and the error
