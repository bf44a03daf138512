"""A config put together: defaults, a YAML recipe, words of the command line, each winning over the one before.

OmegaConf merges and checks types; what it would say in its own terms, an unknown key or a word that sets none, is said here
in the user's.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ulmfit_dist.config.schema import Config, Phase
from ulmfit_dist.config.validation import check_config
from ulmfit_dist.errors import UserError, did_you_mean


def load_config(recipe: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Compose the configuration.

    Args:
        recipe: a YAML file, or None for the defaults alone.
        overrides: words as `lm.global_batch_size=32`, later ones winning.

    Raises:
        UserError: an unreadable file, an unknown key, a value of the wrong type or out of range.
    """
    layers = [(*_read_yaml(Path(recipe)), "")] if recipe is not None else []
    layers += [(*_read_override(word), word.partition("=")[0]) for word in overrides]
    merged = OmegaConf.structured(Config)
    origin = "config"
    try:
        for layer, origin, key in layers:
            _refuse_unknown_keys(layer, Config, origin)
            for name in _maps_in(layer, Config):
                if not key.startswith(f"{name}."):
                    OmegaConf.update(merged, name, {}, merge=False)
            merged = OmegaConf.merge(merged, layer)
        config = cast(Config, OmegaConf.to_object(merged))
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise UserError(f"{origin}: {getattr(error, 'full_key', None) or 'config'}: {_first_line(error)}") from None
    if config.runtime.precision in ("no", "False"):  # Accelerate's name; a bare no is YAML's word for false
        config.runtime.precision = "fp32"
    check_config(config)
    return config


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML, for `config.yaml` in a run directory."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def to_dict(config: Config) -> dict[str, Any]:
    """The resolved configuration as plain dictionaries and lists."""
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.structured(config)))


def describe(config: Config | Phase) -> Iterator[tuple[str, str, str]]:
    """(dotted key, value as YAML, one-line meaning) of every key, in the order of this file."""
    yield from _describe(config, "")


def field_docs(cls: type) -> dict[str, str]:
    """The string under each field of a dataclass of this file, by the field's name."""
    body = ast.parse(inspect.cleandoc(inspect.getsource(cls))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for statement, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(below, ast.Expr):
            docs[cast(ast.Name, statement.target).id] = cast(str, cast(ast.Constant, below.value).value)
    return docs


def _describe(node: Any, prefix: str) -> Iterator[tuple[str, str, str]]:
    docs = field_docs(type(node))
    for item in dataclasses.fields(node):
        value = getattr(node, item.name)
        if dataclasses.is_dataclass(value):
            yield from _describe(value, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", _inline_yaml(value), docs[item.name]


def _inline_yaml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_inline_yaml(item) for item in value)}]"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_inline_yaml(item)}' for key, item in value.items())}}}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _read_yaml(path: Path) -> tuple[DictConfig, str]:
    if not path.is_file():
        raise UserError(f"{path}: no such config file; recipes lie in configs/")
    try:
        layer = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(layer, DictConfig):
        raise UserError(f"{path}: expected keys and values at the top level, as in configs/quickstart.yaml")
    return layer, str(path)


def _read_override(word: str) -> tuple[DictConfig, str]:
    key, equals, text = word.partition("=")
    if not equals or not key:
        raise UserError(f"{word!r}: expected key=value, such as lm.global_batch_size=32")
    if _is_text(key) and text.strip().lower() not in ("", "~", "null") and text.lstrip()[0] not in "\"'":
        return OmegaConf.create(_nested(key.split("."), text.strip())), f"command line, {word}"
    try:
        return OmegaConf.from_dotlist([word]), f"command line, {word}"
    except (YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"command line, {word}: {_first_line(error)}") from None


def _is_text(key: str) -> bool:
    """Return whether the value of a dotted key is text, which is taken as it is: 01 is no number, and # no comment."""
    section: type = Config
    *sections, name = key.split(".")
    for part in sections:
        factory = next((item.default_factory for item in dataclasses.fields(section) if item.name == part), None)
        if not (isinstance(factory, type) and dataclasses.is_dataclass(factory)):
            return False
        section = factory
    return any(item.name == name and item.type in ("str", "str | None") for item in dataclasses.fields(section))


def _nested(keys: Sequence[str], value: str) -> dict[str, Any]:
    return {keys[0]: value if len(keys) == 1 else _nested(keys[1:], value)}


def _refuse_unknown_keys(layer: Any, cls: type, origin: str, prefix: str = "") -> None:
    """Walk a raw layer beside the dataclass that describes it."""
    known = {item.name: item for item in dataclasses.fields(cls)}
    for key in layer:
        if key not in known:
            raise UserError(f"{origin}: unknown key {prefix}{key}; {did_you_mean(str(key), known)}")
        value = layer._get_node(key)
        default = known[key].default_factory
        if isinstance(default, type) and dataclasses.is_dataclass(default):
            if not isinstance(value, DictConfig):
                raise UserError(f"{origin}: {prefix}{key} is a section: set a key in it, such as {prefix}{key}.KEY=...")
            _refuse_unknown_keys(value, default, origin, f"{prefix}{key}.")
        elif key == "phases":
            _refuse_unknown_phase_keys(layer[key], origin, f"{prefix}{key}")


def _maps_in(layer: Any, cls: type, prefix: str = "") -> Iterator[str]:
    """Dotted keys of the maps in a raw layer, such as data.splits: one that is given whole replaces the one before."""
    factories = {item.name: item.default_factory for item in dataclasses.fields(cls)}
    for key in layer:
        factory = factories[key]
        if factory is dict:
            yield f"{prefix}{key}"
        elif isinstance(factory, type) and dataclasses.is_dataclass(factory):
            yield from _maps_in(layer._get_node(key), factory, f"{prefix}{key}.")


def _refuse_unknown_phase_keys(phases: Any, origin: str, key: str) -> None:
    if not OmegaConf.is_list(phases):
        raise UserError(f"{origin}: {key} is a list: [{{freeze_to: -1, epochs: 1, lr: 1e-2}}, ...]")
    for number, phase in enumerate(phases):
        if not isinstance(phase, DictConfig):
            raise UserError(f"{origin}: {key}[{number}] must say epochs, lr and freeze_to, not {phase!r}")
        _refuse_unknown_keys(phase, Phase, origin, f"{key}[{number}].")


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]
