"""`octavo serve` checks the flags and the checkpoint, then starts the engine and HTTP."""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING, Any, NoReturn

from octavo.engine.config import EngineConfig
from octavo.engine.startup import machine, sizing
from octavo.server import lifecycle, options
from octavo.server.commands import checkpoint
from octavo.server.config import ServerConfig
from octavo.server.environment import from_environment
from octavo.server.http.errors import StartupError

if TYPE_CHECKING:
    from octavo.model.config import ModelConfig
    from octavo.model.generation_config import GenerationConfig
    from octavo.server.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

EPILOG = (
    "Each flag can also be given as an environment variable: --max-model-len as OCTAVO_MAX_MODEL_LEN, MODEL as "
    "OCTAVO_MODEL, --no-enable-prefix-caching as OCTAVO_ENABLE_PREFIX_CACHING=false. The command line wins."
)


def add(commands: "argparse._SubParsersAction[Any]") -> None:
    """Adds the subcommand to those of `octavo`."""
    parser = commands.add_parser(
        "serve",
        usage="octavo serve [MODEL] [flags]",
        help="serve a checkpoint over OpenAI's and Anthropic's APIs",
        description="Serves a checkpoint or a GGUF file over OpenAI's and Anthropic's APIs.",
        epilog=EPILOG,
    )
    options.add_to(parser)
    parser.set_defaults(command=run, parser=parser)


def run(arguments: argparse.Namespace) -> int:
    """Serves until a signal or until the engine has failed for good; returns the exit status."""
    _on_stop_signals(_vanish)
    _set_up_openmp()
    _configure_logging()
    _stand_somewhere()
    machine.check_limits()
    given = from_environment(os.environ, vars(arguments)) | vars(arguments)
    with _listen(given) as listener:
        _tell_address(given.get("address_file"), lifecycle.address(listener))
        directory, name = _find_checkpoint(given.get("model"), given.get("tokenizer"))
        model_config, tokenizer, sampled_vocab = _check_checkpoint(directory)
        engine_config, config = options.configure(given, str(directory), name, sampled_vocab)
        engine_config = replace(engine_config, added_tokens=tokenizer.added_tokens, cache=checkpoint.user_cache())
        machine.check_device(engine_config.device)
        sizing.check_max_model_len(engine_config, model_config)
        return _serve(engine_config, config, tokenizer, listener)


def _set_up_openmp() -> None:
    """Sets how long OpenMP's threads spin while they wait, a tenth of a millisecond, unless the user has set it.

    OpenMP reads this when torch loads, in the engine's process. Threads that spin for long take the CPU from this
    process, and threads that sleep at once are woken for each of a step's hundreds of products.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def _configure_logging() -> None:
    """Writes the server's own lines and the warnings of others to stderr."""
    logging.basicConfig(format="%(asctime)s %(message)s", stream=sys.stderr)
    logging.getLogger("octavo.server").setLevel(logging.INFO)


def _stand_somewhere() -> None:
    """Leaves a working directory that has been removed: libraries look for their own files from there, and fail."""
    try:
        os.getcwd()
    except OSError:
        os.chdir("/")


def _listen(given: dict[str, Any]) -> socket:
    """Opens the listener that the options ask for. Raises StartupError."""
    where = options.DEFAULTS | given
    return lifecycle.listen(where["host"], where["port"])


def _tell_address(file: str | None, url: str) -> None:
    """Writes the URL to a file. A container may have no place for it, and is served all the same."""
    if not file:
        return
    try:
        Path(file).write_text(url + "\n", "utf-8")
    except (OSError, ValueError) as error:
        logger.warning("the server's URL is not written to %s: %s", file[:200], error)


def _find_checkpoint(model: str | None, tokenizer: str | None) -> tuple[Path, str]:
    """Does what checkpoint.find does, and ends what that has started when it is interrupted."""
    _on_stop_signals(_unwind)
    found = checkpoint.find(model, tokenizer)
    _on_stop_signals(_vanish)
    return found


def _check_checkpoint(directory: Path) -> tuple["ModelConfig", "Tokenizer", int]:
    """Reads whatever can be wrong with the checkpoint's files, except for its weights.

    Returns the configuration, the tokenizer, and how many token ids may be sampled. Raises StartupError or ModelError.
    """
    from octavo.model.config import ModelConfig
    from octavo.model.generation_config import GenerationConfig
    from octavo.server.text.tokenizer import Tokenizer

    model_config = ModelConfig.from_pretrained(directory)
    generation = GenerationConfig.from_pretrained(directory)  # The engine uses it, and would find a mistake too late.
    tokenizer = Tokenizer.from_directory(directory)
    sampled_vocab = min(tokenizer.vocab_size, model_config.vocab_size)
    _check_endings(directory, generation, sampled_vocab)
    if generation.passed_over:
        what = ", ".join(generation.passed_over)
        logger.warning("generation_config.json asks for %s, which is passed over: nobody here does it", what)
    return model_config, tokenizer, sampled_vocab


def _check_endings(directory: Path, generation: "GenerationConfig", sampled_vocab: int) -> None:
    """Raises StartupError for an end-of-sequence token that no answer can reach."""
    if not generation.eos_token_ids:
        logger.warning("no file of the checkpoint has an eos_token_id: answers end at max_tokens only")
    beyond = [id for id in generation.eos_token_ids if id >= sampled_vocab]
    if beyond:
        raise StartupError(
            f"Cannot serve {directory}: its eos_token_id {beyond[0]} is beyond the {sampled_vocab} tokens that model "
            "and tokenizer share, so that answers would not end; correct it in generation_config.json or config.json, "
            "or get the tokenizer that has this token."
        )


def _serve(engine_config: EngineConfig, config: ServerConfig, tokenizer: "Tokenizer", listener: socket) -> int:
    """Starts the engine and HTTP, and runs them; returns the exit status."""
    from octavo.engine.process.client import ProcessClient
    from octavo.engine.startup.build import build
    from octavo.server.console import Console

    url = lifecycle.address(listener)
    print(f"octavo: listening on {url}, loading {engine_config.model}", file=sys.stderr, flush=True)
    client = ProcessClient(engine_config, build, watch=Console(sys.stderr, url, config))

    def make_http() -> lifecycle.Http:
        from octavo.server.app import create_app
        from octavo.server.http.uvicorn_server import HttpServer

        return HttpServer(create_app(client, tokenizer, config), config)

    return lifecycle.run(make_http, client, listener, config)


def _on_stop_signals(leave: Callable[[], NoReturn]) -> None:
    """Makes Ctrl-C and SIGTERM call `leave` from here on, also in the first process of a container.

    Both functions that leave end the process with status 0.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: leave())


def _vanish() -> NoReturn:
    """Ends the process at once: there is nothing to clean up, and an import may turn an exception into another one."""
    os._exit(0)


def _unwind() -> NoReturn:
    """Raises SystemExit, so that a download or a build can end the processes that it has started."""
    raise SystemExit(0)
