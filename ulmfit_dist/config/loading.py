"""Composition of a config: defaults, base recipes, a recipe, command-line overrides, each layer over the one before.

OmegaConf merges the layers and checks types; unknown keys, invalid overrides and base recipes are checked here, because its
error messages name neither the file nor the nearest key. The trade-off: this module reads OmegaConf's raw nodes.
"""

from __future__ import annotations

import ast
import copy
import dataclasses
import functools
import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ulmfit_dist.config.fields import members, type_hints
from ulmfit_dist.config.recipes import find_recipe, local_recipe, packaged_recipe
from ulmfit_dist.config.schema import Config, Phase
from ulmfit_dist.config.validation import check_config
from ulmfit_dist.errors import UserError, did_you_mean

MAY_DIFFER_FROM_PRETRAINED = ("tokenizer.lang", "tokenizer.sp_model")
"""Keys that a recipe may set to other values than the pretrained weights have; most tokens then lack an embedding."""


class Layer(NamedTuple):
    """A part of a config.

    Attributes:
        content: its keys and values, interpolations not resolved.
        origin: file or override, for messages.
        key: dotted key of an override; empty for a file.
    """

    content: DictConfig
    origin: str
    key: str = ""


def load_config(recipe: str | Path | None = None, overrides: Sequence[str] = (), *, allow_base: bool = True) -> Config:
    """Compose and check a config.

    Args:
        recipe: a YAML file, or the name of a recipe (`config/recipes.py`); None: the defaults only.
        overrides: `key=value`, such as `lm.global_batch_size=32`; later ones win.
        allow_base: whether the recipe may inherit; False for an exported model, whose config must not name other files.

    Raises:
        UserError: an unreadable file, an unknown key, a value of the wrong type or out of range.
    """
    layers = _read_recipe(find_recipe(recipe), allow_base) if recipe is not None else []
    layers += map(_read_override, overrides)
    merged = copy.deepcopy(_defaults())
    for layer in layers:
        try:
            _check_keys(layer.content, Config, layer.origin)
            for name in _maps_in(layer.content, Config):
                if not layer.key.startswith(f"{name}."):
                    OmegaConf.update(merged, name, {}, merge=False)
            merged = OmegaConf.unsafe_merge(merged, layer.content)  # in place: copies took a third of the time
        except (OmegaConfBaseException, TypeError, ValueError) as error:
            raise _explain(error, layer.origin) from None
    try:
        config = cast(Config, OmegaConf.to_object(merged))
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise _explain(error, layers[-1].origin if layers else "config") from None
    if allow_base:
        _take_over_pretrained(config, layers)
    if config.runtime.precision in ("no", "False"):  # Accelerate's name of fp32; a bare no is false in YAML
        config.runtime.precision = "fp32"
    check_config(config)
    return config


def _take_over_pretrained(config: Config, layers: Sequence[Layer]) -> None:
    """Set the keys that pretrained weights determine and no layer sets. Raises UserError for those that contradict them."""
    name = config.model.pretrained or (None if config.classifier.encoder == "pretrained" else config.classifier.encoder)
    if name is None:
        return
    from ulmfit_dist.pretrained.defaults import pretrained_config

    origins = {key: layer.origin for layer in layers for key in _leaves(layer.content, Config)}
    for key, value in pretrained_config(name, config.model.backwards).items():
        section_name, field_name = key.split(".")
        section = getattr(config, section_name)
        given = getattr(section, field_name)
        if key not in origins:
            setattr(section, field_name, value)
        elif given != value and key not in MAY_DIFFER_FROM_PRETRAINED:
            raise UserError(
                f"{origins[key]}: {key}={_inline_yaml(given)}, but the weights {name} have {_inline_yaml(value)}: leave "
                f"the key out, or use other weights"
            )


def _leaves(content: Any, cls: type, prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys that raw content sets."""
    for key in content:
        factory = {item.name: item.default_factory for item in dataclasses.fields(cls)}.get(key)
        if isinstance(factory, type) and dataclasses.is_dataclass(factory):
            yield from _leaves(content._get_node(key), factory, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def to_yaml(config: Config) -> str:
    """Return the resolved config as YAML, for `config.yaml` in a run directory."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def to_dict(config: Config) -> dict[str, Any]:
    """Return the resolved config as plain dictionaries and lists."""
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.structured(config)))


def describe(config: Any) -> Iterator[tuple[str, str, str]]:
    """Yield (dotted key, value as YAML, meaning in one line) of every key, in the order of `schema.py`."""
    yield from _describe(config, "")


def field_docs(cls: type) -> dict[str, str]:
    """Return the string under each field of a dataclass and its bases, by name; a subclass overrides its bases."""
    docs = {}
    for owner in reversed(cls.__mro__[:-1]):
        body = ast.parse(inspect.cleandoc(inspect.getsource(owner))).body[0]
        assert isinstance(body, ast.ClassDef)
        for statement, below in zip(body.body, body.body[1:], strict=False):
            if isinstance(statement, ast.AnnAssign) and isinstance(below, ast.Expr):
                docs[cast(ast.Name, statement.target).id] = cast(str, cast(ast.Constant, below.value).value)
    return docs


@functools.cache
def _defaults() -> Any:
    """Return the defaults, which OmegaConf takes 0.1 s to convert from dataclasses; copy them before a change."""
    return OmegaConf.structured(Config)


def _describe(section: Any, prefix: str) -> Iterator[tuple[str, str, str]]:
    docs = field_docs(type(section))
    for item in dataclasses.fields(section):
        value = getattr(section, item.name)
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


def _read_recipe(path: Path, allow_base: bool) -> list[Layer]:
    """Return the layers of a recipe: its bases, the outermost first, then its own."""
    layers: list[Layer] = []
    seen: list[Path] = []
    while True:
        content = _read_yaml(path)
        seen.append(path.resolve())
        base = _pop_base(content, path)
        layers.insert(0, Layer(content, str(path)))
        if base is None:
            return layers
        if not allow_base:
            raise UserError(f"{path}: base={base!r}: a model's config must be complete: export the model again")
        path = _find_base(base, path, seen)


def _find_base(base: str, path: Path, seen: Sequence[Path]) -> Path:
    """Return the path of the base of the recipe at `path`: relative to its folder, else a recipe of the package.

    Args:
        seen: resolved paths of the recipe and those that inherit from it.
    """
    inherited = local_recipe(path.parent, base)
    packaged = packaged_recipe(base)
    if inherited is None or (packaged is not None and inherited.resolve() == path.resolve()):
        inherited = packaged
    if inherited is None:
        raise UserError(
            f"{path}: base={base!r}: no such recipe in {path.parent}: give a path relative to that folder, or the name of a "
            f"recipe of the package, such as imdb"
        )
    if inherited.resolve() in seen:
        raise UserError(f"{path}: base={base!r}: the recipe inherits from itself: remove one base")
    return inherited


def _pop_base(content: DictConfig, path: Path) -> str | None:
    """Remove and return `base` from raw content: the path of the recipe that it inherits from."""
    if "base" not in content:
        return None
    try:
        base = content.pop("base")
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: base: {_first_line(error)}") from None
    if not isinstance(base, str) or not base.strip():
        raise UserError(f"{path}: base={base!r}: give the path of one recipe, relative to this one, such as imdb.yaml")
    return base


def _read_yaml(path: Path) -> DictConfig:
    try:
        content = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, DictConfig):
        raise UserError(f"{path}: expected keys and values at the top level, such as `name: mine`")
    return content


def _read_override(override: str) -> Layer:
    key, equals, text = override.partition("=")
    origin = f"command line, {override}"
    if not equals or not key:
        raise UserError(f"{override!r}: expected key=value, such as lm.global_batch_size=32")
    if key == "base":
        raise UserError(f"command line, {override}: only a recipe sets base: write one with it, and give that as CONFIG")
    if _is_text(key) and text.strip().lower() not in ("", "~", "null") and text.lstrip()[0] not in "\"'":
        return Layer(OmegaConf.create(_nested(key.split("."), text.strip())), origin, key)
    try:
        return Layer(OmegaConf.from_dotlist([override]), origin, key)
    except (YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"command line, {override}: {_first_line(error)}") from None


def _type_of(key: str) -> Any:
    """Return the type of a dotted key; None for an unknown one, a list entry or a map entry."""
    section: Any = Config
    for name in key.split("."):
        if not dataclasses.is_dataclass(section):
            return None
        section = type_hints(cast(type, section)).get(name)
    return section


def _is_text(key: str) -> bool:
    """Return whether a key takes text, which an override gives verbatim: 01 is not a number, and # not a comment."""
    return str in members(_type_of(key))


def _nested(keys: Sequence[str], value: str) -> dict[str, Any]:
    return {keys[0]: value if len(keys) == 1 else _nested(keys[1:], value)}


def _check_keys(content: Any, cls: type, origin: str, prefix: str = "") -> None:
    """Raise UserError for a key of raw content that the dataclass does not have."""
    known = {item.name: item for item in dataclasses.fields(cls)}
    for key in content:
        if key not in known:
            raise UserError(f"{origin}: unknown key {prefix}{key}; {did_you_mean(str(key), known)}")
        value = content._get_node(key)
        default = known[key].default_factory
        if isinstance(default, type) and dataclasses.is_dataclass(default):
            if not isinstance(value, DictConfig):
                raise UserError(f"{origin}: {prefix}{key} is a section: set a key in it, such as {prefix}{key}.KEY=...")
            _check_keys(value, default, origin, f"{prefix}{key}.")
        elif key == "phases":
            _check_phase_keys(content[key], origin, f"{prefix}{key}")


def _check_phase_keys(phases: Any, origin: str, key: str) -> None:
    if not OmegaConf.is_list(phases):
        raise UserError(f"{origin}: {key} is a list: [{{freeze_to: -1, epochs: 1, lr: 1e-2}}, ...]")
    for number, phase in enumerate(phases):
        if not isinstance(phase, DictConfig):
            raise UserError(f"{origin}: {key}[{number}]={phase!r}: expected a mapping with epochs, lr and freeze_to")
        _check_keys(phase, Phase, origin, f"{key}[{number}].")


def _maps_in(content: Any, cls: type, prefix: str = "") -> Iterator[str]:
    """Yield dotted keys of the maps in raw content, such as data.splits: one given whole replaces the one before."""
    factories = {item.name: item.default_factory for item in dataclasses.fields(cls)}
    for key in content:
        factory = factories[key]
        if factory is dict:
            yield f"{prefix}{key}"
        elif isinstance(factory, type) and dataclasses.is_dataclass(factory):
            yield from _maps_in(content._get_node(key), factory, f"{prefix}{key}.")


def _explain(error: Exception, origin: str) -> UserError:
    """Return an error of OmegaConf as one line with the file or override and the key."""
    return UserError(f"{origin}: {getattr(error, 'full_key', None) or 'config'}: {_first_line(error)}")


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]
