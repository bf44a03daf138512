"""HTML report of one or several runs, in a single self-contained file.

The file has no scripts and no external links, and a Content-Security-Policy forbids both, so it opens offline years later.
All text from a run directory is escaped. The report contains no date, so equal runs give equal bytes. Trade-off: charts are
static.
"""

from __future__ import annotations

import functools
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ulmfit_dist.errors import UserError
from ulmfit_dist.report.charts import HEIGHT, NUM_COLOURS, WIDTH, draw
from ulmfit_dist.report.comparison import COLUMNS, SECONDS, differing_keys, duration, figure, figure_rows, time_rows
from ulmfit_dist.report.ensemble import COMMANDS
from ulmfit_dist.report.figures import PARTS, stage_charts, step_parts
from ulmfit_dist.report.runs import STAGES, Run, read_run
from ulmfit_dist.tracking.console import MAIN_METRICS
from ulmfit_dist.utils.files import write_bytes

FOLDER = Path(__file__).parent
HEADLINES = (("lm", "perplexity"), ("lm", "accuracy"), ("classifier", "accuracy"), ("classifier", "f1_macro"))
"""Headline figures of the page of one run."""


def write_report(runs: Sequence[Path], output: Path | None = None) -> Path:
    """Write the report of run directories and return its path.

    Args:
        runs: run directories, finished or not; several are compared. The page of an ensemble has its members as well.
        output: path of the report; None: report.html in the run directory, or for several runs in the current folder.

    Raises:
        UserError: a folder is not a run directory, or the output cannot be written.
    """
    paths = list(dict.fromkeys(Path(run) for run in runs))
    if not paths:
        raise UserError("no run to report on: name a run directory, such as runs/quickstart")
    page = render(_with_members([read_run(run) for run in paths]))
    path = output or (paths[0] if len(paths) == 1 else Path()) / "report.html"
    try:
        if not path.absolute().parent.is_dir():
            raise UserError(f"{path}: cannot be written ({path.parent} is not a folder)")
        write_bytes(path, page.encode("utf-8", "replace"))
    except (OSError, UserError) as error:
        reason = str(error) if isinstance(error, UserError) else f"{path}: cannot be written ({error.strerror})"
        raise UserError(f"{reason}: name another file for the report") from None
    return path


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["figure"] = figure
    environment.filters["duration"] = duration
    return environment.get_template("page.html")


def render(runs: Sequence[Run]) -> str:
    """Return the page as HTML; an ensemble that stands last, after its members, is the subject of the page."""
    _make_names_unique(runs)
    ensemble = (
        runs[-1] if runs[-1].ensemble is not None and all(run.path in _members_of(runs[-1]) for run in runs[:-1]) else None
    )
    trained = [run for run in runs if run is not ensemble]
    return _template().render(
        css=Markup((FOLDER / "style.css").read_text(encoding="utf-8")),
        runs=runs,
        title=ensemble.name if ensemble else runs[0].name if len(runs) == 1 else f"{len(runs)} runs compared",
        ensemble=ensemble,
        columns=COLUMNS,
        figure_rows=figure_rows(runs),
        parts=SECONDS,
        time_rows=time_rows(runs),
        differing=differing_keys(runs),
        pairs=_pairs(runs) if len(runs) > 1 and not _has_folds(ensemble) else [],
        headlines=_headlines([ensemble] if ensemble else runs),
        stages=[_stage(stage, title, runs, trained) for stage, title in STAGES.items()],
        commands=[_commands(run) for run in runs],
        num_colours=NUM_COLOURS,
        width=WIDTH,
        height=HEIGHT,
    )


def _with_members(runs: list[Run]) -> list[Run]:
    """Return the members of a single ensemble, then the ensemble; others as they are. Missing members are a remark."""
    if len(runs) != 1 or runs[0].ensemble is None:
        return runs
    (ensemble,), members = runs, []
    for path in _members_of(ensemble):
        try:
            members.append(read_run(path))
        except UserError as error:
            ensemble.remarks.append(f"a member is omitted: {error}")
    return [*members, ensemble]


def _members_of(run: Run) -> list[Path]:
    return run.ensemble.members if run.ensemble is not None else []


def _has_folds(ensemble: Run | None) -> bool:
    """Return whether the members were validated on different documents, so that they cannot be compared in pairs."""
    return ensemble is not None and ensemble.ensemble is not None and ensemble.ensemble.kind == "folds"


def _make_names_unique(runs: Sequence[Run]) -> None:
    """Replace names that several runs share by the paths of the runs."""
    names = [run.name for run in runs]
    for run in runs:
        if names.count(run.name) > 1:
            run.name = str(run.path)


def _pairs(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return the comparison of each later run with the first one on the same documents, or the reason why there is none."""
    from ulmfit_dist.report.paired_runs import PairedRuns, pair_with_first, shown, shown_p  # slow import, needed only here

    first, pairs = runs[0], []
    for run, pair in zip(runs[1:], pair_with_first([run.path for run in runs]), strict=True):
        if not isinstance(pair, PairedRuns):
            pairs.append({"run": run, "reason": pair})
            continue
        figures = pair.figures
        rows = [
            (
                name,
                *map(shown, (paired.first, paired.second, paired.difference)),
                f"{shown(paired.low)} to {shown(paired.high)}",
                shown_p(figures.test.p) if name == figures.tested else "",
            )
            for name, paired in figures.differences.items()
        ]
        conclusion = pair.conclude(first.short_name, run.short_name)
        pairs.append(
            {"run": run, "split": pair.split, "test": figures.test.name, "rows": rows, "conclusion": conclusion}
            | {"num_documents": figures.num_documents}
        )
    return pairs


def _headlines(runs: Sequence[Run]) -> list[tuple[str, str, str]]:
    """Return stage, name and value of the headline figures; none in a comparison."""
    columns = [column for column in COLUMNS if (column.stage, column.name) in HEADLINES] if len(runs) == 1 else []
    figures = [(column, runs[0].stages[column.stage].figures.get(column.name)) for column in columns]
    headlines = [(STAGES[c.stage], c.label, figure(value, c.digits)) for c, value in figures if value is not None]
    name = next((name for name in MAIN_METRICS if len(runs) == 1 and name in runs[0].baseline), None)
    if name is not None:
        headlines.insert(0, ("Linear baseline", name.replace("_", "-"), figure(runs[0].baseline[name], 4)))
    total = sum(runs[0].seconds.values())
    return [*headlines, ("All stages", "time", duration(total))] if headlines and total > 0 else headlines


def _stage(stage: str, title: str, runs: Sequence[Run], trained: Sequence[Run]) -> dict[str, Any]:
    """Return the template variables of a stage: its charts, and in a comparison the parts of a step.

    Args:
        trained: the runs that have a training of their own.
    """
    parts = [step_parts(run.stages[stage]) for run in runs] if len(runs) > 1 else []
    return {
        "name": stage,
        "title": title,
        "charts": [(chart, Markup(draw(chart))) for chart in stage_charts(stage, trained, f"{stage}-chart")],
        "parts": parts if any(parts) else [],
        "part_colours": {label: i + 1 for i, label in enumerate(PARTS.values())},
        "longest": max((sum(part.values()) for part in parts), default=0.0) or 1.0,
    }


def _commands(run: Run) -> dict[str, str]:
    """Return the commands that resume the run and that train a new one with its config."""
    if run.ensemble is not None and run.ensemble.kind == "runs":
        features = run.config.get("classifier.baseline_features")  # the first member's config may have others
        option = (
            f" --with-baseline{f' --baseline-features {features}' if features else ''}" if run.ensemble.linear_votes else ""
        )
        members = " ".join(shlex.quote(str(member)) for member in run.ensemble.members)
        command = f"ulmfit-dist ensemble {members}{option} --save"
        folder = run.path.resolve()
        return {
            "resume": f"{command} {shlex.quote(str(folder))}",
            "repeat": f"{command} {shlex.quote(f'{folder}-again')}",
        }
    config = shlex.quote(str(run.path / "config.yaml"))
    command, option = COMMANDS[run.ensemble.kind] if run.ensemble is not None else ("run", "")
    command, option = "self-train" if run.self_training.rounds else command, f" {option}" if option else ""
    return {
        "resume": f"ulmfit-dist {command} {config}{option}",
        "repeat": f"ulmfit-dist {command} {config}{option} {shlex.quote(f'name={run.path.resolve().name}-again')}",
    }
