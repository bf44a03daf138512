"""Search in the objects of an unpickled file: its network, its lists of strings, its settings.

A whole Learner is a graph of stubs (`restricted_pickle.py`) with shared and circular references; every object is visited
once, without recursion.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ulmfit_dist.pretrained.restricted_pickle import StubObject, TensorRef

MAX_OBJECTS = 1_000_000
"""Maximum number of objects that are visited."""
MAX_MODULES = 1_000
"""Maximum number of modules of a network, as often as they occur in it."""


def state_dict_of(module: StubObject) -> dict[str, TensorRef]:
    """Return the tensors of a pickled `nn.Module` by key, those of its modules included; tied tensors under each key."""
    tensors: dict[str, TensorRef] = {}
    waiting: list[tuple[str, Any, tuple[int, ...]]] = [("", module, ())]
    for _ in range(MAX_MODULES):
        if not waiting:
            break
        prefix, module, parents = waiting.pop()
        for group in ("_parameters", "_buffers"):
            for name, value in _named(module, group):
                if isinstance(value, TensorRef):
                    tensors[f"{prefix}{name}"] = value
        if len(parents) < 32 and id(module) not in parents:  # a module that contains itself ends here
            waiting += [(f"{prefix}{name}.", child, (*parents, id(module))) for name, child in _named(module, "_modules")]
    return tensors


def modules_in(content: Any) -> Iterator[StubObject]:
    """Yield the pickled `nn.Module`s, outer ones before the ones in them."""
    for _, value in walk(content):
        if isinstance(value, StubObject) and isinstance(value.state, dict) and "_modules" in value.state:
            yield value


def string_lists(content: Any) -> Iterator[tuple[str, list[str]]]:
    """Yield the lists of strings with the name of the attribute or key that they have, empty if there is none."""
    for name, value in walk(content):
        items = value.items if isinstance(value, StubObject) else value
        if isinstance(items, list) and items and all(isinstance(item, str) for item in items):
            yield name, items


def walk(content: Any) -> Iterator[tuple[str, Any]]:
    """Yield each container and stub once, with its name in the object that contains it, breadth first."""
    seen = {id(content)}
    level: list[tuple[str, Any]] = [("", content)]
    while level and len(seen) < MAX_OBJECTS:
        yield from level
        level = [
            (name or parent, child)
            for parent, value in level
            for name, child in _children(value)
            if isinstance(child, (dict, list, tuple, StubObject)) and not (id(child) in seen or seen.add(id(child)))  # type: ignore[func-returns-value]
        ]


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield (name, child); the children of a list have no name."""
    if isinstance(value, dict):
        yield from ((key if isinstance(key, str) else "", child) for key, child in value.items())
    elif isinstance(value, (list, tuple)):
        yield from (("", child) for child in value)
    elif isinstance(value, StubObject):
        yield from (("", child) for child in (value.state, value.args, value.items))


def _named(module: Any, group: str) -> list[tuple[str, Any]]:
    """Return the parameters, buffers or modules of a pickled module."""
    state = module.state if isinstance(module, StubObject) else None
    content = state.get(group) if isinstance(state, dict) else None
    if isinstance(content, StubObject):  # a dict of a class that is not known
        content = dict(pair for pair in content.items if isinstance(pair, tuple) and len(pair) == 2)
    return [(str(name), value) for name, value in content.items()] if isinstance(content, dict) else []
