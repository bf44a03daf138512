"""A SLURM of two nodes on this machine: its real daemons in a folder of their own, talking over loopback on free ports.

The daemons run as whoever runs the tests. Root's can start jobs of other users, for which paths that are closed to them are
opened in a mount namespace of the nodes alone.
"""

from __future__ import annotations

import getpass
import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "scontrol", "squeue")
NODES = ("node1", "node2")
CONF = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=16 RealMemory=2000
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=16 RealMemory=2000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=tests Nodes=node[1-2] Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=node[1-2] MaxTime=INFINITE State=UP PriorityTier=2
"""
"""Defaults of SLURM that the tests meet: KillWait 30 s, SlurmdTimeout 300 s, and two minutes in the queue after a
requeue."""


def missing_programs() -> list[str]:
    return [program for program in PROGRAMS if shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]


class Cluster:
    """Two nodes, up and idle.

    Attributes:
        folder: open to all users; removed at the end.
    """

    def __init__(self, folder: Path, open_paths: Sequence[Path]):
        self.folder, self.open_paths = folder, open_paths
        self.environment = {**os.environ, "SLURM_CONF": f"{folder}/slurm.conf"}
        self.environment["PATH"] += ":/usr/sbin:/sbin"
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        (self.folder / "munge").mkdir()
        (self.folder / "munge" / "key").write_bytes(os.urandom(1024))
        (self.folder / "munge" / "key").chmod(0o600)
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir()
        conf = CONF.format(host=socket.gethostname(), ports=free_ports(3), user=getpass.getuser(), folder=self.folder)
        (self.folder / "slurm.conf").write_text(conf)
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={self.folder}/munge/{name}" for option, name in files.items()]
        self._start("munged", ["munged", "--foreground", "--force", *options])
        wait_until((self.folder / "munge" / "socket").exists, "munged")
        self._start("slurmctld", ["slurmctld", "-D"])
        for node in NODES:
            self.start_node(node)

    def start_node(self, node: str) -> None:
        """Bring a node up, and wait for SLURM to see it."""
        self._start(node, [*opening(self.open_paths), "slurmd", "-D", "-N", node])
        wait_until(lambda: self.ask("sinfo", "-h", "-n", node, "-o", "%t") in ("idle", "mix", "alloc"), node)

    def start_dead_nodes(self) -> None:
        for node in NODES:
            if self.daemons[node].poll() is not None:
                self.start_node(node)

    def kill_node(self, node: str) -> None:
        """SIGKILL for all that runs on a node: its daemon, the keepers of its job steps, and what they have started."""
        on_node = [pid for pid in job_processes(self.environment["SLURM_CONF"]) if node_of(pid) == node]
        keepers = {parent_of(pid) for pid in on_node} - set(on_node)
        for pid in (self.daemons[node].pid, *keepers, *on_node):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.daemons[node].wait()

    def stop(self) -> None:
        with suppress(AssertionError, OSError, subprocess.SubprocessError):  # whatever its state, its daemons end
            self.ask("scancel", "--user", getpass.getuser(), "--full", "--signal=KILL")
            self.ask("scancel", *self.ask("squeue", "-h", "-o", "%A").split() or ["--state=PENDING"])
            wait_until(lambda: not self.ask("squeue", "-h"), "the end of all jobs", seconds=20)
        for daemon in reversed(self.daemons.values()):
            daemon.terminate()
            daemon.wait()
        for pid in job_processes(self.environment["SLURM_CONF"]):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def ask(self, *words: str) -> str:
        """Return the output of one of SLURM's commands."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr}"
        return done.stdout.strip()

    def submit(self, *words: object, cwd: Path, user: str | None = None, **env: str) -> Job:
        """`sbatch WORDS`, as another user if named."""
        command = ["sbatch", "--parsable", *map(str, words)]
        environment = {**self.environment, **env}
        done = subprocess.run(
            ["runuser", "-u", user, "--", *command] if user else command,
            cwd=cwd, env=environment, capture_output=True, text=True, timeout=30,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return Job(self, done.stdout.strip())

    def _start(self, name: str, words: Sequence[str]) -> None:
        with (self.folder / f"{name}.out").open("ab") as out:
            self.daemons[name] = subprocess.Popen(words, env=self.environment, stdout=out, stderr=out)


class Job:
    """A job that was submitted."""

    def __init__(self, cluster: Cluster, number: str):
        self.cluster, self.number = cluster, number

    def fact(self, name: str) -> str:
        """A property of the job, such as JobState."""
        for word in self.cluster.ask("scontrol", "show", "job", self.number).split():
            if word.startswith(f"{name}="):
                return word.partition("=")[2]
        raise KeyError(name)

    @property
    def state(self) -> str:
        return self.fact("JobState")

    def wait_for(self, *states: str, seconds: float = 300) -> None:
        wait_until(lambda: self.state in states, f"job {self.number} to be {' or '.join(states)}", seconds, self.log)

    def wait_for_requeue(self, number: int) -> None:
        """Until it is back in the queue for the nth time; then spare it most of the two minutes that SLURM lets it wait."""
        self.wait_for("PENDING", "FAILED")
        assert (self.state, self.fact("Restarts")) == ("PENDING", str(number)), self.log()
        self.cluster.ask("scontrol", "update", f"JobId={self.number}", "StartTime=now+2")

    def log(self) -> str:
        """Return its output so far, on all nodes."""
        path = Path(self.cluster.ask("scontrol", "show", "job", self.number).partition(" StdOut=")[2].splitlines()[0])
        paths = [path, *sorted(path.parent.glob(f"{path.stem}-node*.log"))]
        return "".join(f"--- {path.name}\n{path.read_text()}" for path in paths if path.exists())


@contextmanager
def cluster_of_two(open_paths: Sequence[Path]) -> Iterator[Cluster]:
    """A cluster whose jobs, of any user, can read these paths."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)
    cluster = Cluster(folder, [*open_paths, folder])
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def opening(paths: Sequence[Path]) -> list[str]:
    """The words before a command that let all users read these paths, by mounts that it alone sees; none if they can."""
    closed = {parent for path in paths for parent in path.resolve().parents if not parent.stat().st_mode & 1}
    if not closed or os.geteuid() != 0:
        return []
    script = ["set -e", "at=$(mktemp -d)", "mount -t tmpfs -o mode=755 tmpfs $at"]
    needed = [path.resolve() for path in paths]
    for number, path in enumerate(needed):
        script += [f"mkdir $at/{number}", f"mount --bind {shlex.quote(str(path))} $at/{number}"]
    tops = [path for path in closed if not closed & set(path.parents)]
    script += [f"mount -t tmpfs -o mode=755 tmpfs {shlex.quote(str(top))}" for top in tops]
    for number, path in enumerate(needed):
        if any(top in path.parents for top in tops):
            script += [f"mkdir -p {shlex.quote(str(path))}", f"mount --bind $at/{number} {shlex.quote(str(path))}"]
    return ["unshare", "--mount", "sh", "-c", "; ".join([*script, 'exec "$@"']), "sh"]


def job_processes(conf: str) -> list[int]:
    """Processes of jobs of the SLURM with this configuration file."""
    actual = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (folder / "environ").read_bytes().split(b"\0")
            if f"SLURM_CONF={conf}".encode() in words and any(word.startswith(b"SLURM_JOB_ID=") for word in words):
                actual.append(int(folder.name))
    return actual


def node_of(pid: int) -> str:
    with suppress(OSError):
        for word in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if word.startswith(b"SLURMD_NODENAME="):
                return word.partition(b"=")[2].decode()
    return ""


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def free_ports(number: int) -> list[int]:
    with_sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [each.getsockname()[1] for each in with_sockets]
    for each in with_sockets:
        each.close()
    return ports


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 30, log: Callable[[], str] | None = None) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}" + (f"\n{log()}" if log else "")
        time.sleep(0.3)  # asking SLURM takes both cores' time from the job
