"""Where settings come from: a TOML file, then the environment, then options. The later wins, and each is remembered.

Every error is a ConfigError whose text names the key, what was got, what was expected and what to do.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from collectord.config import Address, Config, ConfigError, Section, parse_address

ENV_PREFIX = "COLLECTORD_"
DEFAULT = "default"  # the origin of what nobody set
SHORT_FORMS = {"grpc": "grpc.listen", "http": "http.listen"}  # as --grpc and --http: COLLECTORD_GRPC, COLLECTORD_HTTP

_BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_QUANTITY = re.compile(r"\s*(-?[0-9][0-9_]*(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?)\s*([a-z]*)\s*", re.IGNORECASE)
_EXPECTED = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as the file knows it: `key` is `section.name`, or the bare name at the top."""

    key: str
    type: str  # str, int, float or bool
    help: str
    default: Any

    @property
    def env(self) -> str:
        return ENV_PREFIX + self.key.replace(".", "_").upper()


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration, and of each key that is not at its default where the value came from."""

    config: Config
    origins: Mapping[str, str] = field(default_factory=dict)


def settings() -> dict[str, Setting]:
    """All settings by key, in the order of the file."""
    found: dict[str, Setting] = {}
    for top in fields(Config):
        if not is_dataclass(top.default):
            found[top.name] = Setting(top.name, str(top.type), _TOP_HELP[top.name], top.default)
            continue
        for f in fields(top.default):
            key = f"{top.name}.{f.name}"
            found[key] = Setting(key, str(f.type), f.metadata["help"], f.default)
    return found


_TOP_HELP = {
    "data_dir": "folder of what is kept on disk; empty: nothing is, and a restart begins anew",
    "insecure": "true: listen where other machines reach it, with neither TLS nor tokens",
}


def load(path: str | None, environ: Mapping[str, str], overrides: Mapping[str, object]) -> Config:
    """The effective configuration. `overrides` (from options) are by key: {"grpc.listen": "127.0.0.1:0"}."""
    return load_with_origins(path, environ, overrides).config


def load_with_origins(
    path: str | None,
    environ: Mapping[str, str],
    overrides: Mapping[str, object],
    defaults: Mapping[str, object] | None = None,
) -> Loaded:
    """As `load`, and says of each value where it came from. `defaults`: of the caller, instead of the settings' own."""
    known = settings()
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    layers = [{key: (value, DEFAULT) for key, value in (defaults or {}).items()}]
    layers += [_from_file(path, known)] if path else []
    layers += [_from_environment(environ, known), {key: (value, "option") for key, value in overrides.items()}]
    for layer in layers:
        for key, (got, origin) in layer.items():
            values[key] = _convert(known[key], got, origin)
            origins[key] = origin
    config = _build(values, origins)
    _refuse_open_listeners(config)
    return Loaded(config, origins)


_Layer = dict[str, tuple[Any, str]]  # key to the value as it was written and its origin


def _from_file(path: str, known: Mapping[str, Setting]) -> _Layer:
    try:
        with open(path, "rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; check --config and the file's rights") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}; see `collectord check-config` for how it looks") from error
    origin = f"file {path}"
    sections = {key.partition(".")[0] for key in known if "." in key}
    found: _Layer = {}
    for top, value in document.items():
        if top in sections:
            if not isinstance(value, dict):
                raise ConfigError(
                    f"{origin}: {top}: got {value!r}, expected a section; write [{top}] on a line of its own"
                )
            found |= {f"{top}.{name}": (inner, origin) for name, inner in value.items()}
        elif isinstance(value, dict) and top not in known:
            raise ConfigError(f"{origin}: unknown section [{top}]{_near(top, sections)}")
        else:
            found[top] = (value, origin)
    for key in found:
        if key not in known:
            raise ConfigError(f"{origin}: unknown setting {key}{_near(key, known)}")
    return found


def _from_environment(environ: Mapping[str, str], known: Mapping[str, Setting]) -> _Layer:
    by_env = {setting.env: key for key, setting in known.items()}
    by_env |= {ENV_PREFIX + short.upper(): key for short, key in SHORT_FORMS.items()}
    sections = tuple(sorted({ENV_PREFIX + key.partition(".")[0].upper() + "_" for key in known if "." in key}))
    found: _Layer = {}
    # The short form comes first by its length, so that the full name wins where both are set.
    for name in sorted(environ, key=lambda name: (len(name), name)):
        if name in by_env:
            found[by_env[name]] = (environ[name], f"environment {name}")
        elif name.startswith(sections):
            raise ConfigError(f"environment: unknown setting {name}{_near(name, by_env)}")
    return found


def _near(got: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(got, list(known), n=1)
    if matches:
        return f"; did you mean {matches[0]}? Correct or remove it"
    return "; correct or remove it (`collectord check-config` lists every setting)"


def _convert(setting: Setting, got: Any, origin: str) -> Any:
    """The value in the setting's type; text is read as a number, a size or a duration where one is expected."""
    fault = ConfigError(
        f"{setting.key}: got {got!r} ({origin}), expected {_expected(setting)}; {setting.help}. Correct it, "
        f"or remove it for the default {_toml(setting.default)}"
    )
    if setting.type == "str":
        if not isinstance(got, str) or "\0" in got:
            raise fault
        return got
    if setting.type == "bool":
        value = _BOOLEANS.get(got.strip().lower()) if isinstance(got, str) else got
        if not isinstance(value, bool):
            raise fault
        return value
    number = _quantity(setting.key, got) if isinstance(got, str) else got
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise fault
    if setting.type == "float":
        return float(number)
    if number != int(number):
        raise fault
    return int(number)


_BOOLEANS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}


def _expected(setting: Setting) -> str:
    text = _EXPECTED[setting.type]
    if setting.key.endswith("_bytes"):
        return f'{text} of bytes, or text such as "256MiB"'
    if setting.key.endswith("_ms"):
        return f'{text} of milliseconds, or text such as "250ms"'
    if setting.key.endswith("_s"):
        return f'{text} of seconds, or text such as "30s"'
    return text


def _quantity(key: str, text: str) -> float | int | None:
    """A number, with a unit where the key's own unit (_bytes, _s, _ms) allows one; None when it is neither."""
    match = _QUANTITY.fullmatch(text)
    if match is None:
        return None
    digits, unit = match[1].replace("_", ""), match[2].lower()
    number: float | int = int(digits) if digits.isdigit() else float(digits)
    if not unit:
        return number
    if key.endswith("_bytes") and unit in _BYTES:
        return number * _BYTES[unit]
    if key.endswith("_ms") and unit in _SECONDS:
        return round(number * _SECONDS[unit] * 1000.0, 6)
    if key.endswith("_s") and unit in _SECONDS:
        return number * _SECONDS[unit]
    return None


def _build(values: Mapping[str, Any], origins: Mapping[str, str]) -> Config:
    arguments: dict[str, Any] = {}
    for top in fields(Config):
        if not isinstance(top.default, Section):
            if top.name in values:
                arguments[top.name] = values[top.name]
            continue
        prefix = top.name + "."
        own = {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
        try:
            arguments[top.name] = type(top.default)(**own)
        except ConfigError as error:
            key = str(error).partition(":")[0]
            raise ConfigError(f"{error} ({origins.get(key, 'default')}); correct or remove it") from None
    return Config(**arguments)


def _refuse_open_listeners(config: Config) -> None:
    for key, text in (("grpc.listen", config.grpc.listen), ("http.listen", config.http.listen)):
        address = parse_address(text)
        if not address.is_loopback and not config.insecure:
            raise ConfigError(
                f"{key}: got {text!r}, which other machines can reach, expected a loopback address such as "
                f"{Address('127.0.0.1', address.port)}: this version has neither TLS nor tokens yet, so anyone who "
                "reaches the port could read and write. Listen on loopback, or set insecure = true "
                "(COLLECTORD_INSECURE=true) on a network where that is acceptable"
            )


def to_toml(loaded: Loaded) -> str:
    """The effective configuration as a file that `--config` takes, each line with the origin of its value."""
    lines: list[str] = []
    section = ""
    for key, setting in settings().items():
        head, _, name = key.rpartition(".")
        if head != section:
            section = head
            lines += ["", f"[{section}]"]
        owner = getattr(loaded.config, head) if head else loaded.config
        line = f"{name} = {_toml(getattr(owner, name))}"
        lines.append(f"{line:<40}  # {_comment(loaded.origins.get(key, DEFAULT))}: {setting.help}")
    return "\n".join(lines) + "\n"


def _comment(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _toml(value: Any) -> str:
    if isinstance(value, str | bool):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)
