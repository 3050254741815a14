"""`octavo upcycle` makes a sparse model from a dense one, on the user's own text."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from octavo.engine.startup import machine
from octavo.server import options
from octavo.server.commands import checkpoint, domains
from octavo.server.commands.numbers import Numbers, add_numbers, number, whole
from octavo.server.http.errors import StartupError

if TYPE_CHECKING:
    from octavo.model.train.corpus import Domain
    from octavo.model.train.settings import Settings
    from octavo.model.train.upcycle import Checked, Order

EPILOG = (
    "A domain's text is files or folders of UTF-8 text. Each file is a document; where a domain has fewer than 12 "
    'files, blank lines separate documents. In a .jsonl file each line is one: {"text": ...}, or {"prompt": ..., '
    '"answer": ...}, of which only the answer is learned. Each domain gets an expert, and expert 0 stays the original. '
    "If --experts asks for more, each further one is trained on a mixture of two neighbouring domains: of the first "
    "and the second, of the second and the third, and so on. Run the same command again to go on with a training that "
    "was interrupted."
)


def add(commands: "argparse._SubParsersAction[Any]") -> None:
    """Adds the subcommand to those of `octavo`."""
    parser = commands.add_parser(
        "upcycle",
        usage="octavo upcycle [DENSE] --out DIRECTORY --domain NAME=PATH[,PATH...] [--domain ...] [flags]",
        help="make a sparse model from a dense one, with an expert for each kind of your text",
        description="Trains an expert for each domain on top of a frozen dense model, then the routers, and writes a "
        "Mixtral or Qwen3-MoE checkpoint with a report that compares it with the dense model.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "model",
        metavar="DENSE",
        nargs="?",
        help="directory of a dense Llama, Mistral or Qwen3 checkpoint, a GGUF file, or a hub id (default: the small "
        "model that the default model is made from)",
    )
    parser.add_argument("--out", type=Path, metavar="DIRECTORY", help="the checkpoint to write")
    parser.add_argument("--deltas", type=Path, metavar="FILE", help="write what was trained to a small file, too")
    parser.add_argument(
        "--domain",
        dest="domains",
        action="append",
        type=domains.parse,
        default=[],
        metavar="NAME=PATH,...",
        help="one kind of text, and where it is; repeat the flag for each",
    )
    add_numbers(parser, NUMBERS)
    parser.add_argument(
        "--keep", metavar="NAME", help="the domain that the original serves; no expert is trained on it"
    )
    parser.add_argument(
        "--baseline",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="train the dense model on the same tokens, too, to compare with: half of the time (default: yes)",
    )
    options.add_some(parser, ("tokenizer", "device", "threads"))
    parser.set_defaults(command=run, parser=parser)


NUMBERS: Numbers = (
    ("experts", whole(2, 256), None, "experts of each layer (default: one for each domain, and the original)"),
    ("top-k", whole(1, 256), 2, "experts that serve a token"),
    ("rank", whole(1, 1024), 4, "rank of what is added to each matrix of an expert"),
    ("minutes", number(0.1, 10_000), 45, "time for everything; it becomes a number of steps once, which is recorded"),
    ("steps", whole(1, 10**9), None, "steps of each training, in place of --minutes; repeats a training exactly"),
    ("seed", whole(0, 2**31), 0, "seed of all that is random"),
    ("length", whole(16, 65536), 128, "tokens of a sequence in training"),
    ("rows", whole(1, 4096), 4, "sequences of a step"),
    ("learning-rate", number(1e-8, 1), 2e-3, "highest learning rate of experts"),
    ("router-learning-rate", number(1e-8, 1), 1e-2, "highest learning rate of routers"),
    ("balance-loss", number(0, 1000), 0.01, "weight of the load-balancing loss, as in Switch Transformers"),
    ("z-loss", number(0, 1000), 0.001, "weight of the router z-loss, as in ST-MoE"),
    ("domain-loss", number(0, 1000), 0.1, "weight of the loss that leads tokens to the expert of their domain"),
)


def run(arguments: argparse.Namespace) -> int:
    """Trains, writes, and prints the path of what was written."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, _leave)
    if arguments.out is None and arguments.deltas is None:
        raise StartupError("Nothing says where the result is to be written: give --out DIRECTORY.")
    names = domains.names_of(arguments.domains)
    device = vars(arguments).get("device", "auto")
    machine.check_device(device)
    directory, name = _dense(arguments)
    from octavo.model.train.upcycle import check, upcycle, use_threads
    from octavo.server.console import ProgressLine

    use_threads(vars(arguments).get("threads", machine.processors()))
    order = _order(arguments, directory, name, device)
    checked = check(order, names)
    _check_memory(order, checked, len(names))
    texts = _texts(arguments.domains, order, checked)
    line = ProgressLine(sys.stderr)
    try:
        found = upcycle(order, checked, texts, line.show)
    finally:
        line.close()
    _finish(order, found, packaged=arguments.model is None)
    return 0


def _dense(arguments: argparse.Namespace) -> tuple[Path, str]:
    """Returns the directory of the dense model, and its name. Raises ModelError and StartupError."""
    if arguments.model is not None:
        return checkpoint.find(arguments.model, vars(arguments).get("tokenizer"))
    from octavo.model.demo import dense_base
    from octavo.server.console import ProgressLine

    cache = checkpoint.user_cache()
    if cache is None:
        raise StartupError("This user has no home directory for the default dense model: set HOME, or give DENSE.")
    line = ProgressLine(sys.stderr)
    try:
        base = dense_base.dense_base(Path(cache), line.show)
    finally:
        line.close()
    return checkpoint.find(str(base.file), str(base.tokenizer))[0], dense_base.NAME


def _order(arguments: argparse.Namespace, directory: Path, name: str, device: str) -> "Order":
    from octavo.model.train.upcycle import Order, device_for

    return Order(
        source=directory,
        name=name,
        out=arguments.out,
        deltas=arguments.deltas,
        settings=_settings(arguments),
        steps=arguments.steps,
        minutes=arguments.minutes,
        device=device_for(device),
    )


def _settings(arguments: argparse.Namespace) -> "Settings":
    from octavo.model.train.settings import Coefficients, Settings

    return Settings(
        experts=arguments.experts,
        top_k=arguments.top_k,
        rank=arguments.rank,
        length=arguments.length,
        rows=arguments.rows,
        seed=arguments.seed,
        learning_rate=arguments.learning_rate,
        router_learning_rate=arguments.router_learning_rate,
        coefficients=Coefficients(arguments.balance_loss, arguments.z_loss, arguments.domain_loss),
        keep=arguments.keep,
        baseline=arguments.baseline,
    )


def _check_memory(order: "Order", checked: "Checked", domains: int) -> None:
    """Raises StartupError where the machine has too little memory for the training."""
    from octavo.model.train.plan import memory_bytes

    needed = memory_bytes(checked.config, order.settings, domains)
    if order.device.type == "cpu" and needed > (free := machine.available_memory()):
        raise StartupError(
            f"The training takes about {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free: lower --rows "
            "or --length, give a smaller model, or free some memory."
        )


def _texts(given: Sequence[domains.DomainPaths], order: "Order", checked: "Checked") -> "tuple[Domain, ...]":
    """Reads, encodes and splits all text. Raises StartupError and ModelError."""
    from octavo.model.train.corpus import split
    from octavo.server.text.tokenizer import Tokenizer

    tokenizer, settings = Tokenizer.from_directory(order.source), order.settings
    ends = checked.config.eos_token_ids
    texts = [(each.name, domains.encoded(each, tokenizer, ends, settings.seed)) for each in given]
    return split(texts, settings.seed, settings.length)


def _finish(order: "Order", found: dict[str, Any], packaged: bool) -> None:
    """Adds the licence of the packaged model, and says what came of it all."""
    from octavo.model.train.report import summary

    if order.out is not None and packaged:
        _add_licence(order.out)
    told = summary(found)
    if order.out is not None:
        told.append(f"The report is {order.out / 'report.html'}; serve the model with: octavo serve {order.out}")
    for sentence in told:
        print(f"octavo: {sentence}", file=sys.stderr)
    print(order.target)


def _add_licence(out: Path) -> None:
    """Writes the licence of the packaged dense model, and says that its weights were modified."""
    licences = resources.files("octavo.model.demo").joinpath("licenses")
    origin = licences.joinpath("NOTICE.txt").read_text("utf-8").split("\n\n")[1]
    (out / "LICENSE").write_text(licences.joinpath("LICENSE.txt").read_text("utf-8"), "utf-8")
    changes = "The weights were modified: `octavo upcycle` trained experts and routers on text of its user."
    (out / "NOTICE").write_text(f"{origin}\n\n{changes}\n", "utf-8")


def _leave(number: int, frame: object) -> NoReturn:
    """Ends the process with the status that a shell gives a signal; the next run of the same command goes on."""
    os._exit(128 + number)
