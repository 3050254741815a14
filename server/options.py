"""The flags of `octavo serve` are a table: each row is a field of a config, a flag and an environment variable."""

import re
from argparse import SUPPRESS, Action, ArgumentParser, ArgumentTypeError, BooleanOptionalAction, Namespace
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

from octavo.engine.config import DEVICES, DTYPES, PREPARE, QUANTIZATIONS, EngineConfig
from octavo.server.config import ServerConfig
from octavo.server.http.wire import clean

PREFIX = "OCTAVO_"
EXAMPLE = "mistralai/Mixtral-8x7B-Instruct-v0.1"
LARGEST = 2**63 - 1
MOST_SHOWN = 50  # characters of a wrong value
MOST_THREADS = 4096  # With many more, OpenMP ends the process instead of raising an error.


def _integer(low: int, high: int = LARGEST) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,18}", text) or not low <= int(text) <= high:
            bounds = f"of at least {low}" if high == LARGEST else f"from {low} to {high}"
            raise ArgumentTypeError(f"{_shortened(text)!r} is not a whole number {bounds}")
        return int(text)

    return parse


def _shortened(text: str) -> str:
    return text if len(text) <= MOST_SHOWN else text[:MOST_SHOWN] + "..."


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return value


def _positive(text: str) -> float:
    if not (value := _number(text)) > 0:
        raise ArgumentTypeError(f"{text!r} is not a number above 0")
    return value


def _share(text: str) -> float:
    if not 0 < (value := _number(text)) <= 1:
        raise ArgumentTypeError(f"{text!r} is not a share above 0 and up to 1")
    return value


def _size(text: str) -> int:
    """Parses a size in bytes: "4GiB", "512MiB", "1.5G" (which is GiB, too), or a plain number."""
    match = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,18})?) *([KMGT]?)(?:i?B)?", text, re.IGNORECASE)
    if match is None:
        raise ArgumentTypeError(f"{_shortened(text)!r} is not a size such as 4GiB, 512MiB or a number of bytes")
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ArgumentTypeError(f"{text!r} is not one of {', '.join(choices)}")
        return text

    return parse


def _switch(text: str) -> bool:
    if text.lower() not in {"0", "1", "false", "true", "no", "yes", "off", "on"}:
        raise ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() in {"1", "true", "yes", "on"}


def _list(text: str) -> list[str]:
    items = [item.strip() for item in text.split(",")]
    if not all(items):
        raise ArgumentTypeError("an item of the list is empty")
    if clean(text) != text:  # bytes that are no UTF-8, which the command line brings as lone surrogates
        raise ArgumentTypeError(f"{_shortened(text)!r} is not UTF-8 text")
    return items


def _origins(text: str) -> list[str]:
    """Parses origins of web pages, or "*". Returns them as browsers write them, which leave out a scheme's own port."""
    given = [origin.rstrip("/").lower() for origin in _list(text)]
    origins = [re.sub(r"^(http://.+):80$|^(https://.+):443$", r"\1\2", origin) for origin in given]
    for origin in origins:
        if origin not in ("*", "null") and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s?#@*]+", origin):
            raise ArgumentTypeError(f"{_shortened(origin)!r} is not an origin such as https://app.example or *")
    return origins


def _path(text: str) -> str:
    """Parses a prefix of URLs and removes the slash at its end; "/" is no prefix, as "" is."""
    path = text.rstrip("/")
    if path and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+", path):
        raise ArgumentTypeError(f"{text!r} is not a path such as /octavo")
    return path


def _list_after_one_flag(text: str) -> list[str]:
    """Parses as `_list` does; in addition, the command line takes several values after one flag."""
    return _list(text)


def _listed(names: Sequence[str]) -> str:
    """Returns "b, c or a": auto, the first of the names, comes last, where its meaning follows."""
    auto, *others = names
    return f"{', '.join(others)} or {auto}"


class _Extend(Action):
    """Collects one list from several values after one flag, several flags, and commas within a value."""

    def __call__(self, parser: ArgumentParser, namespace: Namespace, values: Any, option: str | None = None) -> None:
        items = [item for value in values for item in value]
        setattr(namespace, self.dest, [*vars(namespace).get(self.dest, []), *items])


@dataclass(frozen=True, slots=True)
class Option:
    """Describes one flag. `field` is a field of EngineConfig or ServerConfig, which also holds the default.

    Only the tokenizer of a GGUF file is in neither, because it is used before there is a config.
    """

    flag: str
    metavar: str
    parse: Callable[[str], Any]
    help: str
    field: str = ""  # "": it has the flag's name

    @property
    def key(self) -> str:
        return self.field or self.flag.replace("-", "_")

    @property
    def variable(self) -> str:
        return PREFIX + self.flag.upper().replace("-", "_")


GROUPS: dict[str, tuple[Option, ...]] = {
    "model": (
        Option(
            "served-model-name",
            "NAME",
            _list_after_one_flag,
            "names that clients call the model by, one or several; they follow MODEL (default: MODEL without its path)",
            "served_model_names",
        ),
        Option(
            "tokenizer", "DIRECTORY", str, "the tokenizer of a GGUF file (default: the one that the file describes)"
        ),
        Option("dtype", "TYPE", _one_of(*DTYPES), f"{_listed(DTYPES)}, which is what the device does fast"),
        Option(
            "quantization",
            "TYPE",
            _one_of(*QUANTIZATIONS),
            f"quantise weights (on a GPU: experts) to {_listed(QUANTIZATIONS)}, which is what the device does fast",
        ),
        Option(
            "batch-invariant",
            "",
            _switch,
            "give a request the same bits in any batch; the C kernels always do with int8, int4 and (AVX512) fp16",
        ),
        Option(
            "prepare",
            "WHEN",
            _one_of(*PREPARE),
            "auto keeps weights that a CPU took long to quantise as a tile file, which later starts map, if a fifth of "
            "the disk stays free; never does not",
        ),
        Option("verify", "", _switch, "compare tile files with checkpoints by all contents, not by sizes and times"),
        Option("enforce-eager", "", _switch, "use no CUDA graphs: a GPU starts sooner and decodes more slowly"),
        Option("device", "DEVICE", _one_of(*DEVICES), f"{_listed(DEVICES)}, which is a GPU if there is one"),
        Option("threads", "N", _integer(1, MOST_THREADS), "number of CPU threads (default: one for each usable core)"),
    ),
    "HTTP": (
        Option("host", "ADDRESS", str, "address to listen on; 0.0.0.0 is every interface"),
        Option("port", "N", _integer(0, 65535), "port to listen on; 0 takes a free one"),
        Option("address-file", "FILE", str, "write the server's URL to this file, where `octavo health` finds it"),
        Option("root-path", "PATH", _path, "prefix of the server's URLs behind a reverse proxy, such as /octavo"),
        Option("api-key", "KEY", _list, "key that clients must send; repeat the flag for several keys", "api_keys"),
        Option(
            "allowed-origins",
            "URL,...",
            _origins,
            "web pages that may call the server (CORS), such as https://app.example, or *; its own page always may",
        ),
        Option("timeout-header", "SECONDS", _positive, "how long a request's head may take to come"),
        Option("timeout-body", "SECONDS", _positive, "how long a body may stop coming; it has 500 bytes a second, too"),
        Option("timeout-send", "SECONDS", _positive, "how long a client may stop reading its answer"),
        Option("timeout-keep-alive", "SECONDS", _positive, "how long a connection may be idle between requests"),
        Option(
            "limit-concurrency", "N", _integer(1), "connections at once (default: what `ulimit -n` leaves room for)"
        ),
        Option("h11-max-header-count", "N", _integer(1), "header fields that a request may have"),
        Option("h11-max-incomplete-event-size", "SIZE", _size, "size that a request's head may have"),
        Option("drain-timeout", "SECONDS", _number, "how long open requests may run on after SIGTERM or Ctrl-C"),
        Option("trust-request-chat-template", "", _switch, "let requests bring chat templates of their own"),
        Option(
            "parse-special-tokens",
            "",
            _switch,
            "let texts such as <|im_end|> in conversations become special tokens; clients can then forge turns",
        ),
        Option("allow-expert-control", "", _switch, "let requests mask experts of sparse layers, or favour them"),
        Option("expert-metrics", "", _switch, "count in /metrics how many tokens each expert of each layer serves"),
        Option("log-text", "", _switch, "write prompts and outputs to the log"),
    ),
    "batching": (
        Option("max-model-len", "N", _integer(1), "tokens of prompt and output (default: what model and cache allow)"),
        Option("max-num-seqs", "N", _integer(1), "sequences that run at once (default: chosen for the machine)"),
        Option("max-num-batched-tokens", "N", _integer(1), "tokens that one step computes (default: found at start)"),
        Option("max-waiting", "N", _integer(0), "sequences that may wait to run; the server answers 429 to more"),
        Option(
            "watchdog-timeout",
            "SECONDS",
            _integer(0),
            "restart the engine when a step takes longer than this; 0 never does, which is for work in a debugger",
        ),
    ),
    "cache": (
        Option("kv-cache-memory", "SIZE", _size, "memory of the KV cache, such as 4GiB (default: from what is free)"),
        Option("gpu-memory-utilization", "SHARE", _share, "share of a GPU's memory for weights and cache together"),
        Option("block-size", "N", _integer(1, 2**16), "tokens in a block of the cache"),
        Option("enable-prefix-caching", "", _switch, "reuse what prompts have in common"),
        Option("share-prefix-cache", "", _switch, "let clients of different API keys share cached prefixes"),
    ),
}

OPTIONS = tuple(option for group in GROUPS.values() for option in group)
DEFAULTS = {
    field.name: field.default
    for config in (EngineConfig, ServerConfig)
    for field in fields(config)
    if field.default is not MISSING
}


def add_to(parser: ArgumentParser) -> None:
    """Adds the flags. A flag that is not given stays out of the namespace, so that the environment can give it."""
    groups = {title: parser.add_argument_group(title) for title in GROUPS}
    add_model(groups["model"])
    for title, options in GROUPS.items():
        for option in options:
            _add(groups[title].add_argument, option)


def add_model(parser: Any) -> None:
    """Adds MODEL to a parser, or to a group of one."""
    text = (
        f"directory of a checkpoint, a GGUF file, or a hub id such as {EXAMPLE} (default: a small model, built at the "
        "first start)"
    )
    parser.add_argument("model", metavar="MODEL", nargs="?", default=SUPPRESS, help=text)


def add_some(parser: ArgumentParser, flags: Sequence[str]) -> None:
    """Adds the flags of these names, as `add_to` does."""
    for option in OPTIONS:
        if option.flag in flags:
            _add(parser.add_argument, option)


def _add(add_argument: Callable[..., Any], option: Option) -> None:
    common = {"dest": option.key, "default": SUPPRESS, "help": option.help + _shown_default(option)}
    if option.parse is _switch:
        add_argument(f"--{option.flag}", action=BooleanOptionalAction, **common)
    elif option.parse is _list_after_one_flag:
        add_argument(f"--{option.flag}", action=_Extend, nargs="+", type=option.parse, metavar=option.metavar, **common)
    else:
        action = "extend" if option.parse in (_list, _origins) else "store"
        add_argument(f"--{option.flag}", action=action, type=option.parse, metavar=option.metavar, **common)


def _shown_default(option: Option) -> str:
    match DEFAULTS.get(option.key):
        case None | () | "":
            return ""
        case bool(value):
            return f" (default: {'yes' if value else 'no'})"
        case tuple(items):
            return f" (default: {','.join(items)})"
        case float(number):
            return f" (default: {number:g})"
        case value:
            return f" (default: {value})"


def configure(
    given: Mapping[str, Any], model: str, name: str, sampled_vocab: int | None = None
) -> tuple[EngineConfig, ServerConfig]:
    """Makes the two configs. `model` is the checkpoint's directory, `name` its name without --served-model-name."""
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    values = {"served_model_names": (clean(name),)} | values | {"model": model, "sampled_vocab": sampled_vocab}

    def of(config: type[EngineConfig] | type[ServerConfig]) -> dict[str, Any]:
        return {field.name: values[field.name] for field in fields(config) if field.name in values}

    return EngineConfig(**of(EngineConfig)), ServerConfig(**of(ServerConfig))
