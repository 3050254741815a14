"""`octavo serve`: puts the parts of a server together and runs it."""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from octavo.server import options
from octavo.server.commands import demo_model

EPILOG = (
    "Each flag can also be given as an environment variable: --max-model-len as OCTAVO_MAX_MODEL_LEN, MODEL as "
    "OCTAVO_MODEL, --no-enable-prefix-caching as OCTAVO_ENABLE_PREFIX_CACHING=false. The command line wins."
)


def add(commands: "argparse._SubParsersAction[Any]") -> None:
    """Adds the subcommand to those of `octavo`."""
    parser = commands.add_parser(
        "serve",
        usage="octavo serve [MODEL] [flags]",
        help="serve a checkpoint over the OpenAI API",
        description="Serves a Mixtral, Mistral or Llama checkpoint over the OpenAI API.",
        epilog=EPILOG,
    )
    options.add_to(parser)
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    _on_stop_signals(_vanish)
    from octavo.engine.process.client import ProcessClient
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
        directory = demo_model.build(demo_model.default_directory(), source=None)
        return directory, directory.name
    directory = hub.resolve(model)
    return directory, model if not Path(model).is_dir() else directory.resolve().name
