"""The command line: one sub-command per thing that a user does.

Nothing heavy is imported before the words are understood, so `--help` and a misspelt key answer at once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from ulmfit_dist.cli.parser import SBATCH_OPTIONS, parse
from ulmfit_dist.config.loading import describe, load_config
from ulmfit_dist.config.schema import Config, RuntimeConfig
from ulmfit_dist.distributed import signals
from ulmfit_dist.distributed.env import is_main_process, is_restart, rank_name, report, report_error, silence_warnings
from ulmfit_dist.distributed.runtime import Runtime
from ulmfit_dist.errors import EXIT_CODE, FAILED, RESUMABLE, RankLostError, ResumableInterrupt, UserError, did_you_mean
from ulmfit_dist.utils.home import replace_unwritable_home

if TYPE_CHECKING:
    from ulmfit_dist.inference.outputs import AnyPrediction
    from ulmfit_dist.inference.predictor import Classifier

SECONDS_OF_RANK_0 = 2.0
"""Seconds in which rank 0 may report the error of all ranks, before another one exits and the launcher ends the rest."""
Command = Callable[[argparse.Namespace], None]


def main(words: Sequence[str] | None = None, ends_process: bool = False) -> int:
    """Run a command; the exit code is 0, or one of those in `errors.py`.

    Args:
        words: arguments of the command line; None for those of this process.
        ends_process: whether the process exits with the code next, so that a scheduler's signal must not change it.
    """
    try:
        args = parse(words)
        message = replace_unwritable_home()
        if message is not None and is_main_process():
            report(message)
        with signals.at_once(ends_process) if args.goes_on else nullcontext():
            COMMANDS[args.command](args)
    except UserError as error:
        report_error(error)
        if not is_main_process() and not getattr(error, "is_collective", False):
            time.sleep(SECONDS_OF_RANK_0)
        return EXIT_CODE
    except RankLostError as error:
        print(f"ulmfit-dist: error: {error}; so {rank_name()} stops, too", file=sys.stderr, flush=True)
        return FAILED
    except ResumableInterrupt as stop:
        report(stop)
        return RESUMABLE
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  the reader of our output has left: nothing to say
    except Exception:
        print(f"ulmfit-dist: {rank_name()} fails:", file=sys.stderr, flush=True)
        raise
    return 0


def _start(args: argparse.Namespace) -> tuple[Config, Runtime]:
    config = load_config(args.recipe, args.overrides)
    is_new = getattr(args, "fresh", False) and not is_restart()
    return config, Runtime(config.runtime, args.verbose, run_dir=None if is_new else config.run_dir)


def _init(args: argparse.Namespace) -> None:
    config = load_config(None, ["data.path=.", *args.overrides])  # reads no text
    runtime = Runtime(config.runtime)
    from ulmfit_dist.recipes.dataset_profile import TextOptions
    from ulmfit_dist.recipes.init import RecipeOptions, describe_result, init

    options = TextOptions(tuple(args.text), args.label, args.target, args.lang, tuple(args.overrides))
    with runtime:
        show = None if args.json else runtime.print
        result = init(args.path, runtime, options, RecipeOptions(args.minutes, args.name, args.output), show)
        runtime.print(json.dumps(result.to_dict(), indent=1, ensure_ascii=False) if args.json else describe_result(result))


def _run(args: argparse.Namespace) -> None:
    config, runtime = _start(args)
    from ulmfit_dist.stages.run import run

    with runtime:
        run(config, runtime, fresh=args.fresh)


def _pretrain(args: argparse.Namespace) -> None:
    args.overrides = [*args.overrides, "data.label_col=null"]
    config, runtime = _start(args)
    from ulmfit_dist.stages.run import run

    with runtime:
        run(config, runtime, fresh=args.fresh, stages=["lm"])


def _stage(args: argparse.Namespace) -> None:
    config, runtime = _start(args)
    from ulmfit_dist.stages.run import run_stage

    with runtime:
        run_stage(config, runtime, args.command, fresh=args.fresh)


def _prepare(args: argparse.Namespace) -> None:
    config, runtime = _start(args)
    from ulmfit_dist.stages.prepare import prepare, summarize

    with runtime:
        store = prepare(config, runtime, args.verify)
        if not args.verbose:
            runtime.print(summarize(store))
        if args.show:
            from ulmfit_dist.stages.show_batch import show_documents

            show_documents(store, args.show, runtime)


def _cross_validate(args: argparse.Namespace) -> None:
    config = load_config(args.recipe, args.overrides)
    from ulmfit_dist.stages.cross_validate import configs_of_folds, cross_validate, describe_figures

    first = configs_of_folds(config)[0].run_dir
    runtime = Runtime(config.runtime, args.verbose, run_dir=None if args.fresh and not is_restart() else first)
    with runtime:
        found = cross_validate(config, runtime, args.fresh)
        heading = f"\n{config.name}: mean ± standard deviation of {config.data.folds} folds"
        runtime.print("\n".join([heading, *describe_figures(found)]))


def _baseline(args: argparse.Namespace) -> None:
    config, runtime = _start(args)
    from ulmfit_dist.stages.baseline import baseline
    from ulmfit_dist.stages.baseline_figures import describe_baseline

    with runtime:
        figures = baseline(config, runtime)
        runtime.print(json.dumps(figures, indent=1) if args.json else "\n".join(describe_baseline(figures)))


def _lr_find(args: argparse.Namespace) -> None:
    config, runtime = _start(args)
    from ulmfit_dist.stages.lr_find import describe_range, find_learning_rate

    with runtime:
        found = find_learning_rate(config, runtime, args.stage, args.start, args.end, args.steps)
        runtime.print(describe_range(found, config, args.stage))


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


def _doctor(args: argparse.Namespace) -> None:
    words = [word for word in (args.recipe, *args.overrides) if word is not None]
    has_recipe = bool(words) and ("=" not in words[0] or Path(words[0]).is_file())
    config = load_config(words[0], words[1:]) if has_recipe else load_config(None, ["data.path=.", *words])  # reads no text
    from ulmfit_dist.doctor.suite import doctor

    doctor(config, args.json)


def _show(args: argparse.Namespace) -> None:
    if args.results and args.overrides:
        raise UserError(f"{args.overrides[0]}: a run has its config: give no keys with --results")
    place = Path(args.recipe)
    if not args.results and (place / "config.yaml").is_file():
        args.recipe = place / "config.yaml"
    config, runtime = (None, Runtime(RuntimeConfig())) if args.results else _start(args)
    from ulmfit_dist.stages.show_results import batch_tables, result_tables

    with runtime:
        if config is None:
            tables = result_tables(place, runtime, args.stage, args.rows, args.tokens, args.trust_rules)
        else:
            tables = batch_tables(config, runtime, args.stage, args.rows, args.tokens)
        for table in tables:
            runtime.print(table)


def _submit(args: argparse.Namespace) -> None:
    config = load_config(args.recipe, args.overrides)
    if args.nodes < 1:
        raise UserError(f"--nodes {args.nodes}: give a whole number of at least 1")
    options = {"nodes": str(args.nodes)}
    options |= {name: value for name in SBATCH_OPTIONS if (value := getattr(args, name.replace("-", "_"))) is not None}
    options |= {name: value for name, _, value in (option.lstrip("-").partition("=") for option in args.sbatch)}
    from ulmfit_dist.stages.slurm import submit

    words = [args.recipe, *args.overrides, *(["--fresh"] if args.fresh else [])]
    print(submit(config, words, options, args.dry_run))


def _report(args: argparse.Namespace) -> None:
    from ulmfit_dist.report.page import write_report

    print(write_report(args.runs, args.output))


def _compare(args: argparse.Namespace) -> None:
    from ulmfit_dist.stages.compare import compare_arguments, describe_comparison

    figures = compare_arguments(args.runs, args.against)
    if is_main_process():
        print(json.dumps(figures, indent=1) if args.json else "\n".join(describe_comparison(figures)))


def _dashboard(args: argparse.Namespace) -> None:
    config = load_config(args.recipe, args.overrides)
    from ulmfit_dist.tracking.wandb_workspace import dashboard

    print(dashboard(config, args.entity, args.dry_run))


def _evaluate(args: argparse.Namespace) -> None:
    from ulmfit_dist.stages.evaluate import describe_figures, evaluate, precision_of_models

    runtime = Runtime(RuntimeConfig(precision=args.precision or precision_of_models([args.run])))

    with runtime:
        figures = evaluate(args.run, runtime, args.trust_rules, args.split, args.data)
        runtime.print(json.dumps(figures, indent=1) if args.json else describe_figures(figures))


def _export(args: argparse.Namespace) -> None:
    silence_warnings()
    if args.to == "onnx":
        from ulmfit_dist.export.onnx import export_to_onnx

        print(export_to_onnx(args.run, args.output or args.run / "onnx" / "model.onnx"))
        return
    from ulmfit_dist.export.fastai import export_to_fastai

    lines = export_to_fastai(args.run, args.output)
    print(lines.read_text(encoding="utf-8"), end="")


def _predict(args: argparse.Namespace) -> None:
    texts = _texts(args)
    _check_output(args)
    silence_warnings()
    from ulmfit_dist.inference.predictor import TextClassifier

    _label(texts, TextClassifier(args.run, trust_rules=args.trust_rules), args.output)


def _ensemble(args: argparse.Namespace) -> None:
    if not args.texts and not args.file:
        _evaluate_ensemble(args)
        return
    if args.with_baseline:
        raise UserError("--with-baseline measures, it does not label: leave out --text and --file, or --with-baseline")
    texts = _texts(args)
    _check_output(args)
    silence_warnings()
    from ulmfit_dist.inference.ensemble import Ensemble

    _label(texts, Ensemble(args.runs, trust_rules=args.trust_rules), args.output)


def _evaluate_ensemble(args: argparse.Namespace) -> None:
    if args.output is not None:
        raise UserError("--output is for labels: give texts, too, with --text or --file")
    from ulmfit_dist.stages.evaluate import precision_of_models
    from ulmfit_dist.stages.evaluate_ensemble import describe_ensemble, evaluate_ensemble

    runtime = Runtime(RuntimeConfig(precision=args.precision or precision_of_models(args.runs)))

    with runtime:
        found = evaluate_ensemble(args.runs, runtime, args.trust_rules, args.with_baseline)
        runtime.print(json.dumps(found, indent=1) if args.json else "\n".join(describe_ensemble(found)))


def _check_output(args: argparse.Namespace) -> None:
    if args.output is not None and not args.output.parent.is_dir():
        raise UserError(f"--output {args.output}: no folder {args.output.parent}")


def _label(texts: Sequence[str], classifier: Classifier, output: Path | None) -> None:
    """Print the labels of texts, or write them to a file."""
    from ulmfit_dist.data.token_store import write_bytes

    predictions = classifier.predict(texts)
    if output is None:
        for line in _table(texts, predictions):
            print(line)
        return
    lines = (json.dumps(asdict(prediction), ensure_ascii=False) for prediction in predictions)
    content = "".join(f"{line}\n" for line in lines)
    if output.exists() and not output.is_file():  # a pipe or a device is written to, not replaced
        output.write_text(content, encoding="utf-8")
    else:
        write_bytes(output, content.encode())


def _texts(args: argparse.Namespace) -> list[str]:
    if args.texts and args.file:
        raise UserError("texts on the command line and --file at once: give one of them")
    if args.texts:
        return args.texts
    if args.file and args.file.is_dir():
        raise UserError(f"{args.file}: a folder, expected a file with one text per line")
    try:
        content = args.file.read_text(encoding="utf-8") if args.file else sys.stdin.read()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{args.file or 'standard input'}: cannot be read as UTF-8 text ({error})") from None
    texts = content.removesuffix("\n").split("\n")  # every line gives a line, so that input and output can be joined
    if not content.strip():
        raise UserError(f"{args.file or 'standard input'}: no text in it, expected one per line")
    return texts


def _table(texts: Sequence[str], predictions: Sequence[AnyPrediction]) -> Iterator[str]:
    for text, prediction in zip(texts, predictions, strict=True):
        shown = text if len(text) <= 60 else f"{text[:57]}..."
        yield f"{prediction}  {shown!r}"


def _generate(args: argparse.Namespace) -> None:
    silence_warnings()
    from ulmfit_dist.inference.generator import LanguageModel

    model = LanguageModel(args.run, trust_rules=args.trust_rules)
    options = {"top_k": args.top_k, "top_p": args.top_p, "min_p": args.min_p, "keep_lines": args.keep_lines}
    texts = model.generate(args.prompt, args.words, args.temperature, args.samples, args.seed, **options)
    for number, text in enumerate(texts, 1):
        print(f"{number}: {text}")


COMMANDS: dict[str, Command] = {
    "init": _init,
    "run": _run,
    "pretrain": _pretrain,
    "prepare": _prepare,
    "lm": _stage,
    "classifier": _stage,
    "cross-validate": _cross_validate,
    "baseline": _baseline,
    "lr-find": _lr_find,
    "config": _config,
    "doctor": _doctor,
    "show": _show,
    "submit": _submit,
    "dashboard": _dashboard,
    "report": _report,
    "compare": _compare,
    "evaluate": _evaluate,
    "predict": _predict,
    "ensemble": _ensemble,
    "export": _export,
    "generate": _generate,
}
"""What does each thing, by the names in `parser.py`."""
