"""`octavo lens` has a model read prompts of several domains, and shows which experts serve each domain."""

import argparse
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from octavo.engine.api import ExpertShape, FinishReason, Request, SamplingParams
from octavo.engine.config import EngineConfig
from octavo.server import options
from octavo.server.commands import checkpoint
from octavo.server.environment import from_environment
from octavo.server.experts import export, figures, plot, table
from octavo.server.experts.record import MAX_TOPIC_LENGTH, MAX_TOPICS, ExpertRecord, Snapshot
from octavo.server.http.errors import StartupError
from octavo.server.http.reading import read_json
from octavo.server.http.wire import encode_json

if TYPE_CHECKING:
    from octavo.engine.process.main import StepLoop

FLAGS = ("tokenizer", "quantization", "dtype", "device", "threads", "max-model-len", "kv-cache-memory")
EXAMPLE = '{"domain": "law", "prompt": "..."}'


@dataclass(frozen=True, slots=True)
class Prompt:
    line: int  # in the file, counted from 1
    domain: str
    text: str


def add(commands: "argparse._SubParsersAction[Any]") -> None:
    """Adds the subcommand to those of `octavo`."""
    parser = commands.add_parser(
        "lens",
        usage="octavo lens [MODEL] PROMPTS [flags]",
        help="show which experts of a sparse model serve which kind of text",
        description="Has a sparse model read prompts, and prints how often each expert served each of their domains, "
        f"beside what chance would give. PROMPTS has a JSON object in each line: {EXAMPLE}.",
    )
    options.add_model(parser)
    parser.add_argument("prompts", type=Path, metavar="PROMPTS", help="a file with a JSON object in each line")
    parser.add_argument("--layer", type=int, metavar="N", help="show one layer (default: the mean of the sparse ones)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all counts, as /v1/experts tells them")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write all counts, a row for each layer and expert")
    parser.add_argument("--npz", type=Path, metavar="FILE", help="write all counts, as arrays for numpy.load")
    formats = ", ".join(plot.FORMATS)
    parser.add_argument("--plot", type=Path, metavar="FILE", help=f"draw the table ({formats}); needs matplotlib")
    options.add_some(parser, FLAGS)
    parser.set_defaults(command=run, parser=parser)


def run(arguments: argparse.Namespace) -> int:
    """Reads the prompts, has them computed, prints the table, writes the files. Raises StartupError and ModelError."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    prompts = read_prompts(arguments.prompts)
    _check_files(arguments)
    given = from_environment(os.environ, vars(arguments)) | vars(arguments)
    directory, name = checkpoint.find(given.get("model"), given.get("tokenizer"))
    config, _ = options.configure(given, str(directory), name)
    check_model(directory, arguments.layer)
    shape, snapshot = found = observed(replace(config, cache=checkpoint.user_cache()), prompts)
    rows = range(len(shape.layers)) if arguments.layer is None else [shape.layers.index(arguments.layer)]
    print(table.table(shape, snapshot.topics, rows))
    if shape.identical:
        print(f"octavo: {figures.IDENTICAL}", file=sys.stderr)
    _write(arguments, name, found, rows)
    return 0


def read_prompts(path: Path) -> list[Prompt]:
    """Returns the prompts of a file. Raises StartupError, which names the line at fault."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise StartupError(f"Cannot read {path} ({reason}); give a file of JSON lines, such as {EXAMPLE}.") from error
    prompts = [_prompt(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise StartupError(f"{path} has no prompts; write lines such as {EXAMPLE}.")
    if (count := len({prompt.domain for prompt in prompts})) > MAX_TOPICS:
        raise StartupError(f"{path} has {count} domains, and at most {MAX_TOPICS} are counted; join some of them.")
    return prompts


def _prompt(path: Path, number: int, line: str) -> Prompt:
    """Returns the prompt in a line. Raises StartupError."""
    try:
        found = read_json(line)
    except ValueError as error:
        raise StartupError(f"Line {number} of {path} is no JSON ({error}); write a line such as {EXAMPLE}.") from error
    match found:
        case {"domain": str(domain), "prompt": str(text)} if 0 < len(domain) <= MAX_TOPIC_LENGTH and text:
            return Prompt(number, domain, text)
    raise StartupError(
        f"Line {number} of {path} should have a domain, of at most {MAX_TOPIC_LENGTH} characters, and a prompt, "
        f"such as {EXAMPLE}."
    )


def _check_files(arguments: argparse.Namespace) -> None:
    """Raises StartupError for a file that could not be written, before anything takes long."""
    for path in (arguments.json, arguments.csv, arguments.npz, arguments.plot):
        if path is not None and not (path.parent.is_dir() and os.access(path.parent, os.W_OK)):
            raise StartupError(
                f"Cannot write {path}: {path.parent} is no directory that can be written; choose another."
            )
    if arguments.plot is not None and arguments.plot.suffix not in plot.FORMATS:
        raise StartupError(f"Cannot draw {arguments.plot}: its name should end with one of {', '.join(plot.FORMATS)}.")
    if arguments.plot is not None and not plot.can_draw():
        raise StartupError("--plot needs matplotlib: run `pip install matplotlib`, or leave the flag out.")


def check_model(directory: Path, layer: int | None) -> None:
    """Raises StartupError if the model has no experts, or none in this layer, before it is loaded."""
    from octavo.model.config import ModelConfig

    config = ModelConfig.from_pretrained(directory)
    sparse = [each for each in range(config.num_hidden_layers) if config.experts_in(each) > 1]
    if not sparse:
        raise StartupError(f"{directory} is a dense model: it has no experts to look at; give a sparse one.")
    if layer is not None and layer not in sparse:
        raise StartupError(f"--layer {layer} has no experts; the sparse layers are from {sparse[0]} to {sparse[-1]}.")


def observed(config: EngineConfig, prompts: Sequence[Prompt]) -> tuple[ExpertShape, Snapshot]:
    """Loads the model and has it read the prompts. Returns which experts there are, and how often they served.

    Raises StartupError if a prompt is longer than the context.
    """
    from octavo.engine.startup.build import build  # This loads torch.
    from octavo.server.console import ProgressLine
    from octavo.server.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_directory(Path(config.model))
    encoded = [tokenizer.encode(prompt.text, add_special_tokens=True) for prompt in prompts]
    line = ProgressLine(sys.stderr)
    try:
        config = replace(config, enable_prefix_caching=False)  # What is cached is not counted.
        engine, ready = build(config, lambda progress: line.show(progress.what, progress.done, progress.total))
        check_lengths(prompts, encoded, ready.max_model_len)
        assert ready.experts is not None, "check_model has found sparse layers"
        record, requests = ExpertRecord(), [_request(*each) for each in zip(prompts, encoded, strict=True)]
        for read in compute(engine, requests, ready.max_num_seqs, record):
            line.show("reading", read, len(requests))
        return ready.experts, record.snapshot(ready.experts)
    finally:
        line.close()


def check_lengths(prompts: Sequence[Prompt], encoded: Sequence[Sequence[int]], most: int) -> None:
    """Raises StartupError for a prompt that has no tokens, or more than the context."""
    for prompt, ids in zip(prompts, encoded, strict=True):
        if not 0 < len(ids) <= most:
            raise StartupError(
                f"The prompt in line {prompt.line} has {len(ids):,} tokens, and the model reads from 1 to {most:,}; "
                "split it."
            )


def _request(prompt: Prompt, ids: Sequence[int]) -> Request:
    """Returns a request that only has a prompt read."""
    return Request(str(prompt.line), ids, SamplingParams(max_tokens=0, topic=prompt.domain))


def compute(engine: "StepLoop", requests: Sequence[Request], at_once: int, record: ExpertRecord) -> Iterator[int]:
    """Computes all requests, so many at once, and records the use of experts. Yields how many are done.

    Raises StartupError if the engine refuses one or fails.
    """
    waiting, done = deque(requests), 0
    running = 0
    while waiting or engine.has_work():
        ended = []
        while waiting and running < at_once:
            refused = engine.add(waiting.popleft())
            running += 1
            ended += [] if refused is None else [refused]
        step = engine.step()
        for use in step.expert_use:
            record.add(use)
        ended += [output for output in step.outputs if output.finish_reason is not None]
        for output in ended:
            if output.finish_reason is FinishReason.ERROR:
                raise StartupError(f"The prompt in line {output.id} could not be computed: {output.error}")
        running, done = running - len(ended), done + len(ended)
        yield done


def _write(arguments: argparse.Namespace, name: str, found: tuple[ExpertShape, Snapshot], rows: Sequence[int]) -> None:
    """Writes the files that are asked for. Raises StartupError."""
    shape, snapshot = found
    writers: list[tuple[Path | None, Callable[[Path], object]]] = [
        (arguments.json, lambda path: path.write_bytes(encode_json(figures.of_sparse(name, shape, snapshot)))),
        (arguments.csv, lambda path: path.write_text(table.rows_of(shape, snapshot.topics), "utf-8")),
        (arguments.npz, lambda path: path.write_bytes(export.npz(shape, snapshot))),
        (arguments.plot, lambda path: plot.draw(shape, snapshot.topics, rows, path)),
    ]
    for path, write in writers:
        if path is None:
            continue
        try:
            write(path)
        except OSError as error:
            raise StartupError(f"Cannot write {path}: {error.strerror}; choose another place.") from error


def _leave(number: int, frame: object) -> NoReturn:
    """Ends the process with the status that a shell gives a signal."""
    os._exit(128 + number)
