"""`ulmfit-dist export`: a run's models as fastai's files or as an ONNX graph."""

from __future__ import annotations

import argparse
from pathlib import Path

from ulmfit_dist.cli.arguments import Subparsers, add_command
from ulmfit_dist.distributed.env import silence_warnings


def add_parser(subparsers: Subparsers) -> None:
    """Add the command's arguments."""
    parser = add_command(subparsers, "export", "export a run's models to another format")
    parser.add_argument("run", metavar="RUN", type=Path, help="a run directory, an exported model, or hf:USER/NAME")
    parser.add_argument("--to", required=True, choices=("fastai", "onnx"), help="files for fastai, or an ONNX graph")
    parser.add_argument("--output", type=Path, metavar="PATH", help="default: fastai/ or onnx/model.onnx in RUN")


def run(args: argparse.Namespace) -> None:
    """Export the models; print the graph's path, or the lines of Python that load fastai's files."""
    silence_warnings()
    from ulmfit_dist.export.fastai import check_output, export_to_fastai

    check_output(args.run, args.output)
    if args.to == "onnx":
        from ulmfit_dist.export.onnx import export_to_onnx

        print(export_to_onnx(args.run, args.output or args.run / "onnx" / "model.onnx"))
        return
    script = export_to_fastai(args.run, args.output)
    print(script.read_text(encoding="utf-8"), end="")
