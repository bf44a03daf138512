"""`ulmfit-dist ensemble`: several classifiers as one."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ulmfit_dist.cli.arguments import (
    Subparsers,
    add_command,
    add_device,
    add_files,
    add_json,
    add_precision,
    add_quantize,
    add_trust,
    add_verbosity,
)
from ulmfit_dist.cli.texts import check_arguments, join_ranks, label, report_quantization
from ulmfit_dist.errors import UserError


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    parser = add_command(
        subparsers,
        "ensemble",
        "evaluate the mean of several classifiers, or label texts with it",
        description="average the probabilities of classifiers; without texts: metrics of each and of their mean",
    )
    parser.add_argument(
        "runs",
        metavar="RUN",
        type=Path,
        nargs="+",
        help="a run directory, an exported classifier, or hf:USER/NAME; or the run directory of one ensemble",
    )
    parser.add_argument("--text", action="append", dest="texts", default=[], metavar="TEXT", help="a text; may be repeated")
    add_files(parser, "labels and probabilities", "predicted_")
    add_device(parser)
    add_quantize(parser)
    add_verbosity(parser)
    parser.add_argument("--with-baseline", action="store_true", help="the linear baseline is another member")
    parser.add_argument(
        "--baseline-features",
        choices=("tfidf", "naive_bayes", "lsa"),
        help="features of the linear baseline (default: as in the first run's config)",
    )
    parser.add_argument(
        "--save", type=Path, metavar="FOLDER", help="make the mean a run directory, beside the runs: predict FOLDER uses it"
    )
    add_json(parser)
    add_precision(parser)
    add_trust(parser)


def run(args: argparse.Namespace) -> None:
    """Label the texts; without texts, evaluate the members and their mean."""
    if args.baseline_features is not None and not args.with_baseline:
        raise UserError(f"--baseline-features {args.baseline_features} needs --with-baseline: add it, or leave both out")
    if not args.texts and not args.file:
        _evaluate(args)
        return
    if args.with_baseline or args.save is not None:
        raise UserError(
            "--with-baseline and --save do not label texts: leave out --text and --file, then label them with "
            "'ulmfit-dist predict FOLDER'"
        )
    if args.json or args.precision is not None:
        raise UserError("--json and --precision are for metrics: leave them out, or leave out --text and --file")
    check_arguments(args)
    with join_ranks() as (ranks, device):
        from ulmfit_dist.inference.ensemble import Ensemble
        from ulmfit_dist.inference.loading import model_folders
        from ulmfit_dist.inference.saved_ensemble import SavedEnsemble
        from ulmfit_dist.models.ensemble_file import is_ensemble

        runs = model_folders(args.runs, ranks)
        ensemble: Ensemble | SavedEnsemble
        with ranks.fail_together():
            if len(runs) == 1 and is_ensemble(runs[0]):
                ensemble = SavedEnsemble(runs[0], device, args.trust_remote_code, args.quantize)
                runs = ensemble.folders
            else:
                ensemble = Ensemble(runs, device, args.trust_remote_code, args.quantize)
        report_quantization(args, runs, ensemble.members, ranks)
        label(args, ensemble, ranks)


def _evaluate(args: argparse.Namespace) -> None:
    if args.output is not None or args.text_col or args.set or args.prefix is not None:
        raise UserError("--output, --prefix, --text-col and --set are for labels: give texts with --text or --file")
    from ulmfit_dist.config.schema import RuntimeConfig
    from ulmfit_dist.distributed.runtime import Runtime
    from ulmfit_dist.inference.loading import model_folders
    from ulmfit_dist.models.ensemble_file import is_ensemble
    from ulmfit_dist.stages.evaluate import precision_of_models
    from ulmfit_dist.stages.evaluate_ensemble import describe_ensemble, evaluate_ensemble
    from ulmfit_dist.stages.evaluate_saved import evaluate_saved_ensemble
    from ulmfit_dist.stages.save_ensemble import save_ensemble

    if args.save is not None and (args.quantize is not None or args.precision is not None or args.json):
        raise UserError("--quantize, --precision and --json are not for --save: leave them out, or leave out --save")
    runs = model_folders(args.runs)
    with Runtime(RuntimeConfig(precision=args.precision or precision_of_models(runs))) as runtime:
        if args.save is not None:
            features = args.baseline_features
            save_ensemble(runs, args.save, runtime, args.trust_remote_code, args.with_baseline, features)
            return
        if len(runs) == 1 and is_ensemble(runs[0]):
            if args.with_baseline:
                raise UserError(
                    f"{runs[0]} has its own linear model, which votes if valid says so: leave out --with-baseline"
                )
            figures = evaluate_saved_ensemble(runs[0], runtime, args.trust_remote_code, args.quantize)
        else:
            figures = evaluate_ensemble(
                runs, runtime, args.trust_remote_code, args.with_baseline, args.quantize, args.baseline_features
            )
        runtime.print(json.dumps(figures, indent=1) if args.json else "\n".join(describe_ensemble(figures)))
