"""Simulation of a GPU in every Python process with this folder in PYTHONPATH, from the import of torch."""

import importlib.abc
import importlib.util
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))  # tests/, where the package is


def before_torch(module):
    from simulated_gpu import native

    native.load()


def after_torch(module):
    from simulated_gpu import cuda_api, line_coverage

    cuda_api.install()
    line_coverage.start()


def after_compile(module):
    from simulated_gpu import cuda_sources

    cuda_sources.install(module)


HOOKS = {"torch": (before_torch, after_torch), "ulmfit_dist.cuda.compile": (lambda module: None, after_compile)}
"""Functions to call before and after a module's import."""


class HookedLoader(importlib.abc.Loader):
    """Loader of a module that calls the module's hooks."""

    def __init__(self, loader, before, after):
        self.loader, self.before, self.after = loader, before, after

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        self.before(module)
        self.loader.exec_module(module)
        self.after(module)

    def __getattr__(self, name):
        return getattr(self.loader, name)


class HookedFinder(importlib.abc.MetaPathFinder):
    """Finder of modules with hooks, once each."""

    def find_spec(self, name, path, target=None):
        if name not in HOOKS:
            return None
        hooks = HOOKS.pop(name)
        spec = importlib.util.find_spec(name)
        if spec is not None:
            spec.loader = HookedLoader(spec.loader, *hooks)
        return spec


sys.meta_path.insert(0, HookedFinder())
