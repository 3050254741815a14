"""`octavo train --tiny` trains a small sparse model and its dense twin from nothing, and shows both curves."""

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from octavo.engine.startup import machine
from octavo.server import options
from octavo.server.commands import domains
from octavo.server.commands.numbers import Numbers, add_numbers, number, whole
from octavo.server.http.errors import StartupError

if TYPE_CHECKING:
    from octavo.model.train.corpus import Domain
    from octavo.model.train.pretrain import PretrainOrder
    from octavo.server.text.documents import Found

NUMBERS: Numbers = (
    ("experts", whole(2, 256), 8, "experts of each layer"),
    ("top-k", whole(1, 8), 2, "experts that serve a token; 1 makes a Switch Transformer"),
    ("layers", whole(1, 100), 6, "layers"),
    ("hidden", whole(64, 4096), 256, "width of the states, a multiple of 64"),
    ("vocabulary", whole(300, 65536), 4096, "tokens of the tokenizer, which is made from the text"),
    ("minutes", number(0.1, 10_000), 30, "time for both trainings; it becomes a number of steps, which is recorded"),
    ("steps", whole(1, 10**9), None, "steps of each training, in place of --minutes; repeats a training exactly"),
    ("seed", whole(0, 2**31), 0, "seed of all that is random"),
    ("length", whole(16, 4096), 256, "tokens of a sequence"),
    ("rows", whole(1, 4096), 8, "sequences of a step"),
    ("learning-rate", number(1e-8, 1), 2e-3, "highest learning rate"),
    ("balance-loss", number(0, 1000), 0.01, "weight of the load-balancing loss, as in Switch Transformers and OLMoE"),
    ("z-loss", number(0, 1000), 0.001, "weight of the router z-loss, as in ST-MoE and OLMoE"),
)
HEAD = 32  # width of an attention head; there are two query heads for each pair of keys and values


def add(commands: "argparse._SubParsersAction[Any]") -> None:
    """Adds the subcommand to those of `octavo`."""
    parser = commands.add_parser(
        "train",
        usage="octavo train --tiny --out DIRECTORY --text PATH[,PATH...] [flags]",
        help="train a tiny sparse model from nothing, beside its dense twin",
        description="Trains a tokenizer, a small sparse model and a dense one with as many active weights, on the same "
        "tokens. The report shows both curves and compares the two on held-out text; `octavo serve` serves the sparse "
        "one. Run the same command again to go on with a training that was interrupted.",
    )
    parser.add_argument("--tiny", action="store_true", help="train tiny models; there are no others yet")
    parser.add_argument("--out", type=Path, metavar="DIRECTORY", help="the checkpoint to write")
    parser.add_argument(
        "--text", metavar="PATH,...", help="files and folders of text, as for `octavo upcycle --domain`"
    )
    add_numbers(parser, NUMBERS)
    options.add_some(parser, ("threads",))
    parser.set_defaults(command=run, parser=parser)


def run(arguments: argparse.Namespace) -> int:
    """Trains, writes, and prints the directory."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, _leave)
    paths = _checked(arguments)
    from octavo.model.train.pretrain import pretrain
    from octavo.model.train.pretrain_report import sentence
    from octavo.model.train.upcycle import use_threads
    from octavo.model.train.work import check_absent
    from octavo.server.console import ProgressLine
    from octavo.server.text import documents

    check_absent(arguments.out)
    use_threads(vars(arguments).get("threads", machine.processors()))
    order, text = _prepared(arguments, documents.read("text", paths.paths, arguments.seed))
    line = ProgressLine(sys.stderr)
    try:
        found = pretrain(order, text, line.show)
    finally:
        line.close()
    print(f"octavo: {sentence(found)}", file=sys.stderr)
    where = f"The report is {order.out / 'report.html'}; serve the model with: octavo serve {order.out}"
    print(f"octavo: {where}", file=sys.stderr)
    print(order.out)
    return 0


def _checked(arguments: argparse.Namespace) -> domains.DomainPaths:
    """Returns where the text is. Raises StartupError for flags that do not fit together."""
    if not arguments.tiny:
        raise StartupError("`octavo train` trains tiny models only: say so with --tiny, or see `octavo upcycle`.")
    if arguments.out is None or not arguments.text:
        raise StartupError("A training needs text and a place for its result: give --text PATH and --out DIRECTORY.")
    if arguments.hidden % (2 * HEAD):
        raise StartupError(f"--hidden {arguments.hidden} is not a multiple of {2 * HEAD}; give one, such as 256.")
    if arguments.top_k > arguments.experts:
        raise StartupError(f"--top-k {arguments.top_k} is more than --experts {arguments.experts}: lower it.")
    paths = domains.parse(f"text={arguments.text}")
    domains.names_of([paths])
    return paths


def _prepared(arguments: argparse.Namespace, found: "Found") -> "tuple[PretrainOrder, Domain]":
    """Makes the tokenizer and the documents. Raises ModelError for too little text."""
    from octavo.model.train.corpus import Document, split
    from octavo.model.train.pretrain import PretrainOrder, Recipe
    from octavo.model.train.scratch import Sizes
    from octavo.server.text import new_tokenizer

    tokenizer = new_tokenizer.train((text.prompt + text.text for text in found.texts), arguments.vocabulary)
    encoded = tokenizer.encode_batch_fast([text.prompt + text.text for text in found.texts])
    texts = [Document.of([*each.ids, 0]) for each in encoded]
    (text,) = split([("text", texts)], arguments.seed, arguments.length)
    sizes = Sizes(
        vocabulary=tokenizer.get_vocab_size(),
        hidden=arguments.hidden,
        layers=arguments.layers,
        heads=arguments.hidden // HEAD,
        kv_heads=arguments.hidden // HEAD // 2,
        wide=4 * arguments.hidden,
        experts=arguments.experts,
        top_k=arguments.top_k,
        context=max(1024, arguments.length),
    )
    numbers = {name: vars(arguments)[name] for name in ("length", "rows", "seed", "learning_rate")}
    recipe = Recipe(sizes, **numbers, balance=arguments.balance_loss, z=arguments.z_loss)
    files = new_tokenizer.files(tokenizer)
    return PretrainOrder(arguments.out, recipe, files, arguments.steps, arguments.minutes), text


def _leave(number: int, frame: object) -> NoReturn:
    """Ends the process with the status that a shell gives a signal; the next run of the same command goes on."""
    os._exit(128 + number)
