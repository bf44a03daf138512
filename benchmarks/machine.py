"""Description of the machine that a figure was measured on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version

import torch

PACKAGES = ("fastai", "spacy", "numpy", "torch")
"""Packages whose versions are printed."""


def machine() -> str:
    """Return processor, cores, GPU if there is one, and versions."""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{_processor()}, {len(os.sched_getaffinity(0))} cores{gpu}; Python {platform.python_version()}, {versions}"


def _processor() -> str:
    with open("/proc/cpuinfo") as file:
        lines = dict(line.split(":", 1) for line in file if ":" in line)
    fields = {key.strip(): value.strip() for key, value in lines.items()}
    model = f" (family {fields['cpu family']}, model {fields['model']})" if "cpu family" in fields else ""
    return fields.get("model name", platform.machine()) + model
