"""The words of the command line, understood: nothing heavy is imported for them, so `--help` answers at once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from ulmfit_dist import __version__
from ulmfit_dist.config.schema import PRECISIONS, TARGETS
from ulmfit_dist.errors import UserError

SBATCH_OPTIONS = {
    "gpus-per-node": "4",
    "cpus-per-task": "16, for all ranks of a node",
    "time": "4:00:00",
    "account": "nlp",
    "partition": "gpu",
}
"""Options of sbatch that `submit` has under their own names, with examples."""

EXAMPLES = """\
examples:
  ulmfit-dist init reviews.csv                                  looks at your texts, and writes reviews.yaml
  ulmfit-dist run configs/quickstart.yaml                       one process, all stages
  accelerate launch -m ulmfit_dist run configs/imdb.yaml        all visible GPUs
  ulmfit-dist run configs/imdb.yaml lm.global_batch_size=32     any key of the config can be set
  ulmfit-dist submit configs/imdb.yaml --nodes 2 --gpus-per-node 4 --time 4:00:00        the same under SLURM
  ulmfit-dist config configs/imdb.yaml                          every key, its value and its meaning
  ulmfit-dist predict runs/quickstart "A late goal won the cup."
"""


class _Parser(argparse.ArgumentParser):
    """argparse, whose errors are one line, on rank 0."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The words of a command line; None: of this process.

    As `parse_args`, with options allowed between the overrides, which argparse itself stops at.

    Returns:
        The arguments, and with them `command`, its name, and `goes_on`: whether the same words go on after a signal.

    Raises:
        UserError: words that are none of the command's.
    """
    words = sys.argv[1:] if words is None else list(words)
    parser = _parser()
    words, against = _cut_sides(words)
    args, rest = parser.parse_known_args(words)
    options = [word for word in rest if word.startswith("-")]
    if args.command == "compare":
        args.runs, args.against, rest = [*args.runs, *map(Path, rest)], against, options
    if options or (rest and not hasattr(args, "overrides")):
        parser.error(f"unknown: {' '.join(options or rest)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    return args


def _cut_sides(words: list[str]) -> tuple[list[str], list[Path] | None]:
    """Return the words without the runs behind the `--` of `compare`, and those runs; None where there is no `--`.

    argparse takes `--` for the end of the options and drops it. Here it stands between two sides, and options may follow.
    """
    if words[:1] != ["compare"] or "--" not in words:
        return words, None
    place = words.index("--")
    before, after = words[:place], words[place + 1 :]
    if "--" in after:
        raise UserError("'--' is given twice, but a comparison has two sides: ulmfit-dist compare A-1 A-2 -- B-1 B-2")
    options = [word for word in after if word.startswith("-")]
    return [*before, *options], [Path(word) for word in after if not word.startswith("-")]


def _parser() -> _Parser:
    parser = _Parser(
        prog="ulmfit-dist",
        description="ULMFiT, distributed: train a language model on your texts, then a classifier on its encoder.",
        epilog=EXAMPLES,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=20, width=100),
    )
    parser.add_argument("--version", action="version", version=f"ulmfit-dist {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    _add_init(commands)
    run = _with_config(commands, "run", "all stages: prepare, lm, classifier; what is done is not done again")
    _add_fresh(run)
    pretrain = _with_config(commands, "pretrain", "a language model alone, of texts without labels, to start others from")
    _add_fresh(pretrain)
    report = commands.add_parser(
        "report", help="a run, or several beside each other, on one page", description="write report.html"
    )
    report.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="a run directory, such as runs/quickstart")
    report.add_argument(
        "--output", type=Path, metavar="F", help="default: report.html in the run's directory; of several runs, in this one"
    )
    report.set_defaults(command="report", goes_on=False)
    prepare = _with_config(commands, "prepare", "texts to token store, shared out over the ranks")
    prepare.add_argument("--show", type=int, default=0, metavar="N", help="print N documents as the model will read them")
    prepare.add_argument("--verify", action="store_true", help="read all files again, also those that seem unchanged")
    _add_fresh(_with_config(commands, "lm", "train the language model"))
    classifier = _with_config(commands, "classifier", "train the classifier on the run's language model")
    _add_fresh(classifier)
    _add_fresh(_with_config(commands, "cross-validate", "a run for each of data.folds, and the mean of their metrics"))
    baseline = _with_config(commands, "baseline", "figures of TF-IDF with a linear model on the same documents, in seconds")
    baseline.add_argument("--json", action="store_true", help="print the figures as JSON")
    baseline.set_defaults(goes_on=False)
    lr_find = _with_config(commands, "lr-find", "a learning rate range test: rates to begin a stage with")
    lr_find.add_argument("--stage", choices=("lm", "classifier"), default="lm", help="default: %(default)s")
    lr_find.add_argument("--start", type=float, default=1e-7, metavar="LR", help="lowest rate (default: %(default)s)")
    lr_find.add_argument("--end", type=float, default=10, metavar="LR", help="highest rate (default: %(default)s)")
    lr_find.add_argument("--steps", type=int, default=100, metavar="N", help="from one to the other (default: %(default)s)")
    lr_find.set_defaults(goes_on=False)
    described = _with_config(commands, "config", "print the resolved config, each key with its meaning")
    described.add_argument(
        "--get", action="append", metavar="KEY", help="print a key's value alone, for scripts; may be repeated"
    )
    _add_doctor(commands)
    _add_show(commands)
    _add_submit(commands)
    dashboard = _with_config(commands, "dashboard", "save a workspace with this project's charts in W&B")
    dashboard.add_argument("--entity", metavar="E", help="user or team in W&B (default: WANDB_ENTITY, or yours)")
    dashboard.add_argument("--dry-run", action="store_true", help="print the workspace, and save nothing")

    _add_evaluate(_with_run(commands, "evaluate", "compute a run's metrics again, or those of new texts"))
    predict = _with_run(commands, "predict", "label texts")
    predict.add_argument("texts", metavar="TEXT", nargs="*", help="a text; none: one per line from standard input")
    _add_files(predict)
    _add_ensemble(commands)
    _add_compare(commands)
    export = commands.add_parser("export", help="a run's models in another format", description="export models")
    export.add_argument("run", metavar="RUN", type=Path, help="a run directory, or an exported model")
    export.add_argument("--to", required=True, choices=("fastai", "onnx"), help="fastai's files, or a classifier's graph")
    export.add_argument("--output", type=Path, metavar="PLACE", help="default: fastai/ or onnx/model.onnx in RUN")
    export.set_defaults(command="export", goes_on=False)
    generate = _with_run(commands, "generate", "go on from a prompt")
    generate.add_argument("prompt", metavar="PROMPT", help="the beginning of the text")
    generate.add_argument("--words", type=int, default=40, help="tokens to add (default: %(default)s)")
    generate.add_argument("--temperature", type=float, default=0.75, help="lower is safer (default: %(default)s)")
    generate.add_argument("--top-k", type=int, metavar="K", help="draw from the K most likely words alone, such as 50")
    generate.add_argument("--top-p", type=float, metavar="P", help="from the likeliest that share P of it all, such as 0.9")
    generate.add_argument("--min-p", type=float, metavar="P", help="from those P times as likely as the first, such as 0.05")
    generate.add_argument("--samples", type=int, default=2, help="texts to write (default: %(default)s)")
    generate.add_argument("--seed", type=int, default=42, help="another seed, other texts (default: %(default)s)")
    generate.add_argument("--keep-lines", action="store_true", help="keep line breaks; without, a text is one line")
    return parser


def _with_config(commands: Any, name: str, help: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help, description=help)
    parser.add_argument("recipe", metavar="CONFIG", help="a YAML recipe, such as configs/quickstart.yaml")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="keys to set, such as lm.global_batch_size=32")
    is_run = name not in ("config", "submit", "dashboard")
    if is_run:
        parser.add_argument("--verbose", action="store_true", help="say more than the table of epochs")
    parser.set_defaults(command=name, goes_on=is_run)
    return parser


def _add_init(commands: Any) -> None:
    text = "look at your texts, and write a recipe for them: the first command"
    parser = commands.add_parser("init", help=text, description=text)
    parser.add_argument(
        "path", metavar="PATH", help="a folder, a CSV, TSV, JSON or Parquet file, a folder of them, or hub:NAME"
    )
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="keys to set, such as data.quoting=false")
    parser.add_argument("--label", metavar="COL", help="the column of labels; none: a language model alone")
    parser.add_argument("--text", metavar="COL", action="append", default=[], help="a column of text; may be repeated")
    parser.add_argument("--target", choices=TARGETS, help="what a label is: one class, several, or a number")
    parser.add_argument("--lang", metavar="XX", help="the language, such as en or de")
    parser.add_argument("--minutes", type=float, default=15, metavar="M", help="that a run may take (default: %(default)s)")
    parser.add_argument("--name", help="of the run (default: that of PATH)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the recipe (default: NAME.yaml in this folder)")
    parser.add_argument("--json", action="store_true", help="print the data card as JSON")
    parser.set_defaults(command="init", goes_on=False)


def _add_fresh(parser: argparse.ArgumentParser) -> None:
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on with what was begun (the default)")
    again.add_argument("--fresh", action="store_true", help="train again from the start")


def _add_doctor(commands: Any) -> None:
    text = "check this machine, on every rank: devices, numbers, network, folders, services, speed"
    parser = commands.add_parser("doctor", help=text, description=text)
    parser.add_argument("recipe", metavar="CONFIG", nargs="?", help="a YAML recipe (default: the defaults of all keys)")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="keys to set, such as runtime.precision=bf16")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.set_defaults(command="doctor", goes_on=False)


def _add_show(commands: Any) -> None:
    parser = _with_config(commands, "show", "a batch as text, or with --results what a run's models say of such texts")
    parser.add_argument("--results", action="store_true", help="CONFIG is a run, or an exported model: show what it says")
    parser.add_argument("--stage", choices=("lm", "classifier"), help="one stage alone (default: all that there are)")
    parser.add_argument("--rows", type=int, default=4, metavar="N", help="rows of each table (default: %(default)s)")
    parser.add_argument("--tokens", action="store_true", help="tokens as the model reads them, in place of readable text")
    parser.set_defaults(goes_on=False)
    _add_trust(parser)


def _add_submit(commands: Any) -> None:
    parser = _with_config(commands, "submit", "run all stages as a batch job of SLURM")
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="nodes of the job (default: %(default)s)")
    for name, example in SBATCH_OPTIONS.items():
        parser.add_argument(f"--{name}", metavar="X", help=f"as sbatch's, such as {example}")
    parser.add_argument(
        "--sbatch", action="append", default=[], metavar="OPTION=X", help="another option of sbatch, such as constraint=a100"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the script, and submit nothing")
    _add_fresh(parser)


def _add_ensemble(commands: Any) -> None:
    parser = commands.add_parser(
        "ensemble",
        help="several classifiers as one: evaluate their mean, or label texts with it",
        description="average the probabilities of classifiers; without texts: metrics of each and of their mean",
    )
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="a run directory, or an exported classifier")
    parser.add_argument("--text", action="append", dest="texts", default=[], metavar="TEXT", help="a text; may be repeated")
    _add_files(parser)
    parser.add_argument("--with-baseline", action="store_true", help="measure with the TF-IDF baseline as one more member")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    _add_precision(parser)
    _add_trust(parser)
    parser.set_defaults(command="ensemble", goes_on=False)


def _add_compare(commands: Any) -> None:
    parser = commands.add_parser(
        "compare",
        help="two runs on the same documents; or two sides of several seeds, A-* -- B-*",
        description="the difference of two runs with its 95 % interval, and whether it may be chance",
        usage="%(prog)s [-h] [--json] RUN RUN | RUN [RUN ...] -- RUN [RUN ...]",
    )
    parser.add_argument(
        "runs", metavar="RUN", type=Path, nargs="*", help="a run directory; '--' stands between two sides of several"
    )
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.set_defaults(command="compare", goes_on=False)


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--split", choices=("valid", "test"), default="valid", help="documents (default: %(default)s)")
    place.add_argument("--data", type=Path, metavar="FILE", help="new labelled texts: a table, or a folder by class")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    _add_precision(parser)


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--file", type=Path, metavar="F", help="read texts from a file, one per line")
    parser.add_argument("--output", type=Path, metavar="F", help="write JSON lines to a file")


def _add_precision(parser: argparse.ArgumentParser) -> None:
    help = "as runtime.precision (default: the one that the models were trained in, if this machine has it, else auto)"
    parser.add_argument("--precision", choices=PRECISIONS, type=lambda name: "fp32" if name == "no" else name, help=help)


def _add_trust(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trust-remote-code", action="store_true", help="call the functions that the model's config names")


def _with_run(commands: Any, name: str, help: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help, description=help)
    parser.add_argument(
        "run", metavar="RUN", type=Path, help="a run directory, such as runs/quickstart, or an exported model"
    )
    _add_trust(parser)
    parser.set_defaults(command=name, goes_on=False)
    return parser
