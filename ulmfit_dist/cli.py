"""The command line: one sub-command per thing that a user does.

Nothing heavy is imported before the words are understood, so `--help` and a misspelt key answer at once.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ulmfit_dist import __version__, stopping
from ulmfit_dist.compose import describe, load_config
from ulmfit_dist.config import PRECISIONS, Config, RuntimeConfig
from ulmfit_dist.errors import EXIT_CODE, FAILED, RESUMABLE, Interrupted, RankLostError, UserError, did_you_mean
from ulmfit_dist.runtime import Runtime, is_main_process, quieten, rank_name, report, report_error

if TYPE_CHECKING:
    from ulmfit_dist.stages.predict import Prediction

Command = Callable[[argparse.Namespace], None]

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
  ulmfit-dist run configs/quickstart.yaml                       one process, all stages
  accelerate launch -m ulmfit_dist run configs/imdb.yaml        all visible GPUs
  ulmfit-dist run configs/imdb.yaml lm.global_batch_size=32     any key of the config can be set
  ulmfit-dist submit configs/imdb.yaml --nodes 2 --gpus-per-node 4 --time 4:00:00        the same under SLURM
  ulmfit-dist config configs/imdb.yaml                          every key, its value and its meaning
  ulmfit-dist predict runs/quickstart "A late goal won the cup."
"""


def main(words: Sequence[str] | None = None) -> int:
    """Run a command; the exit code is 0, or one of those in `errors.py`."""
    try:
        args = _parse(words)
        with stopping.at_once() if args.goes_on else nullcontext():
            args.command(args)
    except UserError as error:
        report_error(error)
        return EXIT_CODE
    except RankLostError as error:
        print(f"ulmfit-dist: error: {error}; so {rank_name()} stops, too", file=sys.stderr, flush=True)
        return FAILED
    except Interrupted as stop:
        report(stop)
        return RESUMABLE
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has left: nothing to say
    except Exception:
        print(f"ulmfit-dist: {rank_name()} fails:", file=sys.stderr, flush=True)
        raise
    return 0


class _Parser(argparse.ArgumentParser):
    """argparse, whose errors are one line, on rank 0."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    """As `parse_args`, with options allowed between the overrides, which argparse itself stops at."""
    parser = _parser()
    args, rest = parser.parse_known_args(words)
    options = [word for word in rest if word.startswith("-")]
    if options or (rest and not hasattr(args, "overrides")):
        parser.error(f"unknown: {' '.join(options or rest)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    return args


def _parser() -> _Parser:
    parser = _Parser(
        prog="ulmfit-dist",
        description="ULMFiT, distributed: train a language model on your texts, then a classifier on its encoder.",
        epilog=EXAMPLES,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=20, width=100),
    )
    parser.add_argument("--version", action="version", version=f"ulmfit-dist {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    run = _with_config(commands, "run", "all stages: prepare, lm, classifier; what is done is not done again", _run)
    _add_fresh(run)
    report = commands.add_parser(
        "report", help="a run, or several beside each other, on one page", description="write report.html"
    )
    report.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="a run directory, such as runs/quickstart")
    report.add_argument("--output", type=Path, metavar="F", help="default: in the run's directory; of several runs, here")
    report.set_defaults(command=_report, goes_on=False)
    prepare = _with_config(commands, "prepare", "texts to token store, shared out over the ranks", _prepare)
    prepare.add_argument("--show", type=int, default=0, metavar="N", help="print N documents as the model will read them")
    _add_fresh(_with_config(commands, "lm", "train the language model", _stage("lm")))
    classifier = _with_config(
        commands, "classifier", "train the classifier on the run's language model", _stage("classifier")
    )
    _add_fresh(classifier)
    show = _with_config(commands, "config", "print the resolved config, each key with its meaning", _config)
    show.add_argument(
        "--get", action="append", metavar="KEY", help="print a key's value alone, for scripts; may be repeated"
    )
    _add_submit(commands)
    dashboard = _with_config(commands, "dashboard", "save a workspace with this project's charts in W&B", _dashboard)
    dashboard.add_argument("--entity", metavar="E", help="user or team in W&B (default: yours)")
    dashboard.add_argument("--dry-run", action="store_true", help="print the workspace, and save nothing")

    evaluate = _with_run(commands, "evaluate", "compute a run's metrics again", _evaluate)
    evaluate.add_argument("--precision", default="auto", choices=PRECISIONS, help="as runtime.precision (default: auto)")
    predict = _with_run(commands, "predict", "label texts", _predict)
    predict.add_argument("texts", metavar="TEXT", nargs="*", help="a text; none: one per line from standard input")
    predict.add_argument("--file", type=Path, metavar="F", help="read texts from a file, one per line")
    predict.add_argument("--output", type=Path, metavar="F", help="write JSON lines to a file")
    generate = _with_run(commands, "generate", "go on from a prompt", _generate)
    generate.add_argument("prompt", metavar="PROMPT", help="the beginning of the text")
    generate.add_argument("--words", type=int, default=40, help="tokens to add (default: %(default)s)")
    generate.add_argument("--temperature", type=float, default=0.75, help="lower is safer (default: %(default)s)")
    generate.add_argument("--samples", type=int, default=2, help="texts to write (default: %(default)s)")
    generate.add_argument("--seed", type=int, default=42, help="another seed, other texts (default: %(default)s)")
    return parser


def _with_config(commands: Any, name: str, help: str, command: Command) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help, description=help)
    parser.add_argument("recipe", metavar="CONFIG", help="a YAML recipe, such as configs/quickstart.yaml")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="keys to set, such as lm.global_batch_size=32")
    is_run = name not in ("config", "submit", "dashboard")
    if is_run:
        parser.add_argument("--verbose", action="store_true", help="say more than the table of epochs")
    parser.set_defaults(command=command, goes_on=is_run)
    return parser


def _add_fresh(parser: argparse.ArgumentParser) -> None:
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on with what was begun (the default)")
    again.add_argument("--fresh", action="store_true", help="train again from the start")


def _add_submit(commands: Any) -> None:
    parser = _with_config(commands, "submit", "run all stages as a batch job of SLURM", _submit)
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="nodes of the job (default: %(default)s)")
    for name, example in SBATCH_OPTIONS.items():
        parser.add_argument(f"--{name}", metavar="X", help=f"as sbatch's, such as {example}")
    parser.add_argument(
        "--sbatch", action="append", default=[], metavar="OPTION=X", help="another option of sbatch, such as constraint=a100"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the script, and submit nothing")
    _add_fresh(parser)


def _with_run(commands: Any, name: str, help: str, command: Command) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help, description=help)
    parser.add_argument(
        "run", metavar="RUN", type=Path, help="a run directory, such as runs/quickstart, or an exported model"
    )
    parser.add_argument("--trust-rules", action="store_true", help="call the functions in the model's tokenizer.rules")
    parser.set_defaults(command=command, goes_on=False)
    return parser


def _start(args: argparse.Namespace) -> tuple[Config, Runtime]:
    config = load_config(args.recipe, args.overrides)
    return config, Runtime(config.runtime, args.verbose)


def _run(args: argparse.Namespace) -> None:
    config, runtime = _start(args)
    from ulmfit_dist.stages.run import run

    with runtime:
        run(config, runtime, fresh=args.fresh)


def _stage(stage: str) -> Command:
    def command(args: argparse.Namespace) -> None:
        config, runtime = _start(args)
        from ulmfit_dist.stages.run import run_stage

        with runtime:
            run_stage(config, runtime, stage, fresh=args.fresh)

    return command


def _prepare(args: argparse.Namespace) -> None:
    config, runtime = _start(args)
    from ulmfit_dist.stages.prepare import prepare, summarize

    with runtime:
        store = prepare(config, runtime)
        if not args.verbose:
            runtime.print(summarize(store))
        if args.show:
            from ulmfit_dist.stages.show import show_documents

            show_documents(store, args.show, runtime)


def _config(args: argparse.Namespace) -> None:
    described = list(describe(load_config(args.recipe, args.overrides)))
    values = {key: value for key, value, _ in described}
    for key in args.get or ():
        if key not in values:
            raise UserError(f"--get {key}: unknown key; {did_you_mean(key, values)}")
    if not is_main_process():
        return
    if args.get:
        print(*(values[key] for key in args.get), sep="\n")
    else:
        for key, value, meaning in described:
            print(f"{f'{key}: {value}':<44} # {meaning}")


def _submit(args: argparse.Namespace) -> None:
    config = load_config(args.recipe, args.overrides)
    if args.nodes < 1:
        raise UserError(f"--nodes {args.nodes}: give a whole number of at least 1")
    options = {"nodes": str(args.nodes)}
    options |= {name: value for name in SBATCH_OPTIONS if (value := getattr(args, name.replace("-", "_"))) is not None}
    options |= {name: value for name, _, value in (option.lstrip("-").partition("=") for option in args.sbatch)}
    from ulmfit_dist.stages.submit import submit

    words = [args.recipe, *args.overrides, *(["--fresh"] if args.fresh else [])]
    print(submit(config, words, options, args.dry_run))


def _report(args: argparse.Namespace) -> None:
    from ulmfit_dist.report.page import write_report

    print(write_report(args.runs, args.output))


def _dashboard(args: argparse.Namespace) -> None:
    config = load_config(args.recipe, args.overrides)
    from ulmfit_dist.stages.dashboard import dashboard

    print(dashboard(config, args.entity, args.dry_run))


def _evaluate(args: argparse.Namespace) -> None:
    runtime = Runtime(RuntimeConfig(precision=args.precision))
    from ulmfit_dist.stages.evaluate import evaluate

    with runtime:
        runtime.print(json.dumps(evaluate(args.run, runtime, args.trust_rules), indent=1))


def _predict(args: argparse.Namespace) -> None:
    texts = _texts(args)
    if args.output is not None and not args.output.parent.is_dir():
        raise UserError(f"--output {args.output}: no folder {args.output.parent}")
    quieten()
    from ulmfit_dist.data.store import write_bytes
    from ulmfit_dist.stages.predict import TextClassifier

    predictions = TextClassifier(args.run, trust_rules=args.trust_rules).predict(texts)
    if args.output is None:
        for line in _table(texts, predictions):
            print(line)
    else:
        lines = (json.dumps(asdict(prediction), ensure_ascii=False) for prediction in predictions)
        content = "".join(f"{line}\n" for line in lines)
        if args.output.exists() and not args.output.is_file():  # a pipe or a device is written to, not replaced
            args.output.write_text(content, encoding="utf-8")
        else:
            write_bytes(args.output, content.encode())


def _texts(args: argparse.Namespace) -> list[str]:
    if args.texts and args.file:
        raise UserError("texts on the command line and --file at once: give one of them")
    if args.texts:
        return args.texts
    try:
        content = args.file.read_text(encoding="utf-8") if args.file else sys.stdin.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{args.file or 'standard input'}: cannot be read as UTF-8 text ({error})") from None
    texts = content.removesuffix("\n").split("\n")  # every line gives a line, so that input and output can be joined
    if not content.strip():
        raise UserError(f"{args.file or 'standard input'}: no text in it, expected one per line")
    return texts


def _table(texts: Sequence[str], predictions: Sequence[Prediction]) -> Iterator[str]:
    for text, prediction in zip(texts, predictions, strict=True):
        probabilities = "  ".join(f"{label} {p:.4f}" for label, p in prediction.probabilities.items())
        shown = text if len(text) <= 60 else f"{text[:57]}..."
        yield f"{prediction.label} ({prediction.index})  {probabilities}  {shown!r}"


def _generate(args: argparse.Namespace) -> None:
    quieten()
    from ulmfit_dist.stages.generate import LanguageModel

    model = LanguageModel(args.run, trust_rules=args.trust_rules)
    for number, text in enumerate(model.generate(args.prompt, args.words, args.temperature, args.samples, args.seed), 1):
        print(f"{number}: {text}")
