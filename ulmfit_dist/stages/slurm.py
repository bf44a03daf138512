"""SLURM batch scripts: written from a config and submitted by `sbatch`.

The scripts in `slurm/` are the templates: their `#SBATCH` lines are the defaults, user-given options replace or extend
them, and the job calls the same functions. So a submitted script can be inspected and submitted again, and signals and
requeues are handled in one place. Trade-off: a script names the place of the package, so it is valid on this cluster only.
(submitit has its own requeuing, and starts ranks without `accelerate launch`.)
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from ulmfit_dist.config.schema import Config
from ulmfit_dist.errors import UserError
from ulmfit_dist.utils.files import make_folder, write_bytes
from ulmfit_dist.utils.package_files import files_root

OURS = ("array", "chdir", "job-name", "output")
"""Options of sbatch that are set from the config and the working directory."""


def submit(config: Config, argv: Sequence[str], options: Mapping[str, str], dry_run: bool, command: str = "run") -> str:
    """Submit `ulmfit-dist run` as a batch job, or return its script.

    Args:
        config: resolved config, which sets the path of the script.
        argv: arguments of `run`: recipe, overrides, options.
        options: options of sbatch, such as {"nodes": "2", "time": "4:00:00"}.
        dry_run: return the script without submitting it.
        command: another command that trains, in place of `run`.

    Returns:
        The script, or a message about the submitted job.

    Raises:
        UserError: SLURM is not installed, or rejects the job.
    """
    folder = (config.run_dir / "slurm").absolute()
    script = batch_script(config.name, argv, options, folder, Path.cwd(), command)
    if dry_run:
        return script
    if shutil.which("sbatch") is None:
        raise UserError("sbatch not found: submit on a node of a SLURM cluster; --dry-run prints the script")
    make_folder(folder, "runs_dir")
    write_bytes(folder / "job.sbatch", script.encode())
    done = subprocess.run(["sbatch", "--parsable", str(folder / "job.sbatch")], capture_output=True, text=True)
    if done.returncode != 0:
        raise UserError(f"SLURM rejects {folder / 'job.sbatch'}: {' '.join(done.stderr.split())}")
    job = done.stdout.strip().partition(";")[0]
    return f"job {job}: log in {folder}/{config.name}-{job}.log; 'scancel {job}' stops it"


def batch_script(
    name: str, argv: Sequence[str], options: Mapping[str, str], folder: Path, cwd: Path, command: str = "run"
) -> str:
    """Return the batch script that runs `ulmfit-dist run` on the nodes of a job.

    Args:
        name: name of the job.
        argv: arguments of `run`.
        options: options of sbatch, which replace those of the template.
        folder: folder of the logs.
        cwd: working directory of the job.
        command: as for `submit`.

    Raises:
        UserError: an option cannot be set, or the package has no scripts.
    """
    _check(options)
    scripts = files_root() / "slurm"
    template = scripts / ("single_node.sbatch" if options.get("nodes", "1") == "1" else "multi_node.sbatch")
    directives = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?", template.read_text(encoding="utf-8"), re.MULTILINE))
    log = str(folder).replace("%", "%%")
    directives |= {"job-name": name, "dependency": "singleton"}  # only one job may train in a run directory
    directives |= {"chdir": str(cwd), "output": f"{log}/%x-%j.log", **options}
    quoted = shlex.join(argv)
    return "\n".join(
        [
            "#!/usr/bin/env bash",
            f"# ulmfit-dist {command} {quoted}",
            *(_directive(option, value) for option, value in directives.items()),
            "set -euo pipefail",
            "",
            f"source {shlex.quote(str(scripts / 'common.sh'))}",
            f'PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"',
            f"prepare_job {quoted}",
            f"on_nodes {command} {quoted}",
            "",
        ]
    )


def _check(options: Mapping[str, str]) -> None:
    for option, value in options.items():
        if option in OURS:
            raise UserError(f"--sbatch {option} is set by submit: to change it, edit the script that --dry-run prints")
        if not re.fullmatch(r"[a-z][a-z-]*", option) or set(value) & set('"\n'):
            raise UserError(f"--sbatch {option}={value}: expected a long option, OPTION or OPTION=X, without quotes")


def _directive(option: str, value: str) -> str:
    quoted = f'"{value}"' if " " in value else value
    return f"#SBATCH --{option}={quoted}" if value else f"#SBATCH --{option}"
