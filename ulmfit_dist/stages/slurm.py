"""A batch job for SLURM: the script that `sbatch` gets, written and submitted.

What the scripts in `slurm/` say is the default here: their `#SBATCH` lines are read, what the user asks for replaces them or
joins them, and the job does what theirs do. So a script that was submitted can be read, kept and submitted again, and there
is one way through signals and requeues. (submitit would bring its own, and start ranks without `accelerate launch`.)
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import ulmfit_dist
from ulmfit_dist.config.schema import Config
from ulmfit_dist.errors import UserError
from ulmfit_dist.utils.files import make_folder, write_bytes

OURS = ("array", "chdir", "job-name", "output")
"""Options of sbatch that follow from the config, and from where the job is submitted."""
SCRIPTS = Path(ulmfit_dist.__file__).parents[1] / "slurm"


def submit(config: Config, words: Sequence[str], options: Mapping[str, str], dry_run: bool) -> str:
    """Submit `ulmfit-dist run` as a batch job, or show its script.

    Args:
        config: the resolved config, which the script's place follows from.
        words: what `run` gets: the recipe's path, overrides, options.
        options: of sbatch, as {"nodes": "2", "time": "4:00:00"}.
        dry_run: whether to leave it at the script.

    Returns:
        The script, or what to tell about the job.

    Raises:
        UserError: there is no SLURM here, or it refuses the job.
    """
    folder = (config.run_dir / "slurm").absolute()
    script = batch_script(config.name, words, options, folder, Path.cwd())
    if dry_run:
        return script
    if shutil.which("sbatch") is None:
        raise UserError("sbatch is not here: submit on a node of a SLURM cluster; --dry-run prints the script")
    make_folder(folder, "runs_dir")
    write_bytes(folder / "job.sbatch", script.encode())
    done = subprocess.run(["sbatch", "--parsable", str(folder / "job.sbatch")], capture_output=True, text=True)
    if done.returncode != 0:
        raise UserError(f"SLURM refuses {folder / 'job.sbatch'}: {' '.join(done.stderr.split())}")
    job = done.stdout.strip().partition(";")[0]
    return f"job {job}: {folder}/{config.name}-{job}.log will tell; 'scancel {job}' stops it"


def batch_script(name: str, words: Sequence[str], options: Mapping[str, str], folder: Path, cwd: Path) -> str:
    """The script that runs these words on the nodes of a job.

    Args:
        name: of the job.
        options: of sbatch; those in `slurm/` that are not among them stay.
        folder: for its logs.
        cwd: where its relative paths begin.

    Raises:
        UserError: an option that cannot be chosen; the scripts are not there.
    """
    _check(options)
    template = SCRIPTS / ("single_node.sbatch" if options.get("nodes", "1") == "1" else "multi_node.sbatch")
    if not template.is_file():
        raise UserError(
            f"{template}: not there: submit from a checkout of the project, which has slurm/ beside ulmfit_dist/"
        )
    given = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?", template.read_text(encoding="utf-8"), re.MULTILINE))
    log = str(folder).replace("%", "%%")
    given |= {"job-name": name, "dependency": "singleton"}  # two jobs at once in one run directory would be one too many
    given |= {"chdir": str(cwd), "output": f"{log}/%x-%j.log", **options}
    quoted = shlex.join(words)
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            f"# ulmfit-dist run {quoted}",
            *(_directive(option, value) for option, value in given.items()),
            "set -euo pipefail",
            "",
            f"source {shlex.quote(str(SCRIPTS / 'common.sh'))}",
            f'PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"',
            f"prepare_job {quoted}",
            f"on_nodes run {quoted}",
            "",
        ]
    )


def _check(options: Mapping[str, str]) -> None:
    for option, value in options.items():
        if option in OURS:
            raise UserError(f"--sbatch {option}: submit decides this one; give a script in {SCRIPTS} to sbatch yourself")
        if not re.fullmatch(r"[a-z][a-z-]*", option) or set(value) & set('"\n'):
            raise UserError(f"--sbatch {option}={value}: expected OPTION or OPTION=X, long, without quotes in it")


def _directive(option: str, value: str) -> str:
    quoted = f'"{value}"' if " " in value else value
    return f"#SBATCH --{option}={quoted}" if value else f"#SBATCH --{option}"
