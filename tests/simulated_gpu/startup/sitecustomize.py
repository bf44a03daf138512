"""Makes a Python process simulate a GPU from the import of torch on, where this folder is in PYTHONPATH."""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))  # tests/, where the package is


class SimulatingLoader(importlib.abc.Loader):
    """torch's own loader, with the device guard loaded before it and `torch.cuda` patched after it."""

    def __init__(self, loader):
        self.loader = loader

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        from simulated_gpu import native

        native.load()
        self.loader.exec_module(module)
        from simulated_gpu import cuda_api, line_coverage

        cuda_api.install()
        line_coverage.start()

    def __getattr__(self, name):
        return getattr(self.loader, name)


class TorchFinder(importlib.abc.MetaPathFinder):
    """Finds torch where it is, and has it loaded by a `SimulatingLoader`, once."""

    def find_spec(self, name, path, target=None):
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("torch")
        if spec is not None:
            spec.loader = SimulatingLoader(spec.loader)
        return spec


sys.meta_path.insert(0, TorchFinder())
