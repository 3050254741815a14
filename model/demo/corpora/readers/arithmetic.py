"""Makes sums and word problems whose answers show each step; a seed gives them, and no package."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random

from octavo.model.demo.corpora.documents import Document

COUNT = 900
SEED = 20261201
NAMES = (
    "Anna",
    "Ben",
    "Clara",
    "David",
    "Emma",
    "Farid",
    "Grace",
    "Hugo",
    "Ines",
    "Jonas",
    "Kemal",
    "Lena",
    "Mina",
    "Noor",
)
THINGS = (
    "apples",
    "books",
    "marbles",
    "stamps",
    "pencils",
    "shells",
    "coins",
    "cards",
    "buttons",
    "oranges",
    "tickets",
)
GOODS = ("notebook", "ticket", "sandwich", "lamp", "plant", "mug", "scarf", "ball", "puzzle", "candle")


class Draw:
    """A Draw gives numbers and words. It uses `random()` alone, which is the same in each version of Python."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)

    def number(self, least: int, most: int) -> int:
        return least + int(self._random.random() * (most - least + 1))

    def one(self, words: Sequence[str]) -> str:
        return words[self.number(0, len(words) - 1)]


def read(archives: Sequence[Path]) -> Iterator[Document]:
    """Yields documents of each kind in turns. Each equation that an answer states is true."""
    draw = Draw(SEED)
    for number in range(COUNT):
        yield KINDS[number % len(KINDS)](draw)


def _addition(draw: Draw) -> Document:
    left, right = draw.number(12, 499), draw.number(12, 499)
    question = draw.one((f"What is {left} + {right}?", f"Add {left} and {right}.", f"Calculate {left} + {right}."))
    tens, ones = right // 10 * 10, right % 10
    steps = f"{left} + {tens} = {left + tens}, and {left + tens} + {ones} = {left + right}. " if ones else ""
    return Document(question, f"{steps}So {left} + {right} = {left + right}.")


def _subtraction(draw: Draw) -> Document:
    right, rest = draw.number(12, 299), draw.number(3, 400)
    left = right + rest
    question = draw.one(
        (f"What is {left} - {right}?", f"Subtract {right} from {left}.", f"Calculate {left} - {right}.")
    )
    tens, ones = right // 10 * 10, right % 10
    steps = f"{left} - {tens} = {left - tens}, and {left - tens} - {ones} = {rest}. " if ones else ""
    return Document(question, f"{steps}So {left} - {right} = {rest}.")


def _multiplication(draw: Draw) -> Document:
    left, right = draw.number(11, 99), draw.number(3, 12)
    tens, ones = left // 10 * 10, left % 10
    question = draw.one(
        (f"What is {left} * {right}?", f"Multiply {left} by {right}.", f"What is {left} times {right}?")
    )
    steps = (
        f"{tens} * {right} = {tens * right}, and {ones} * {right} = {ones * right}. "
        f"Together that is {tens * right} + {ones * right} = {left * right}. "
    )
    return Document(question, f"{steps}So {left} * {right} = {left * right}.")


def _division(draw: Draw) -> Document:
    divisor, quotient, rest = draw.number(3, 12), draw.number(4, 40), draw.number(0, 2)
    whole = divisor * quotient + rest
    exact = f"So {whole} / {divisor} = {quotient}."
    left_over = f"{whole} - {divisor * quotient} = {rest} is left. So it is {quotient}, with a remainder of {rest}."
    return Document(
        draw.one((f"What is {whole} divided by {divisor}?", f"Divide {whole} by {divisor}.")),
        f"{divisor} * {quotient} = {divisor * quotient}. {left_over if rest else exact}",
    )


def _percentage(draw: Draw) -> Document:
    share, whole = draw.number(1, 19) * 5, draw.number(2, 60) * 20
    part = whole * share // 100
    one = f"{whole / 100:g}"
    steps = f"One percent of {whole} is {whole} / 100 = {one}. {share} percent are {share} * {one} = {part}."
    return Document(f"What is {share}% of {whole}?", f"{steps} So {share}% of {whole} is {part}.")


def _gift(draw: Draw) -> Document:
    name, things = draw.one(NAMES), draw.one(THINGS)
    had, got = draw.number(15, 90), draw.number(5, 60)
    gave = draw.number(2, had)
    question = f"{name} has {had} {things}, gets {got} more, and gives {gave} away. How many {things} has {name} now?"
    total = had + got
    steps = (
        f"With those that {name} gets there are {had} + {got} = {total} {things}. Without those that {name} gives away"
    )
    return Document(
        question, f"{steps} there are {total} - {gave} = {total - gave}. So {name} has {total - gave} {things}."
    )


def _purchase(draw: Draw) -> Document:
    name, good = draw.one(NAMES), draw.one(GOODS)
    price, count, other = draw.number(3, 25), draw.number(2, 9), draw.number(2, 30)
    total = price * count + other
    paid = (total // 50 + 1) * 50
    question = (
        f"A {good} costs {price} dollars. {name} buys {count} of them and a bag for {other} dollars, and pays with "
        f"{paid} dollars. How much change does {name} get?"
    )
    first = count * price
    steps = f"{count} of them cost {count} * {price} = {first} dollars. With the bag it is {first} + {other} = {total}"
    return Document(question, f"{steps} dollars. The change is {paid} - {total} = {paid - total} dollars.")


def _journey(draw: Draw) -> Document:
    speed, hours, more = draw.number(8, 24) * 5, draw.number(2, 9), draw.number(10, 60)
    vehicle = draw.one(("train", "bus", "car", "van", "coach"))
    question = (
        f"A {vehicle} drives {hours} hours at {speed} kilometres an hour, and then {more} kilometres more. "
        "How far does it drive?"
    )
    first = speed * hours
    steps = f"In {hours} hours it drives {hours} * {speed} = {first} kilometres. In all that is {first} + {more}"
    return Document(question, f"{steps} = {first + more} kilometres.")


def _rectangle(draw: Draw) -> Document:
    place = draw.one(("garden", "room", "field", "court", "yard", "hall"))
    length, width = draw.number(6, 60), draw.number(4, 30)
    around = 2 * (length + width)
    return Document(
        f"A rectangular {place} is {length} metres long and {width} metres wide. What are its area and its perimeter?",
        f"The area is {length} * {width} = {length * width} square metres. Two sides are {length} + {width} = "
        f"{length + width} metres, so the perimeter is 2 * {length + width} = {around} metres.",
    )


def _average(draw: Draw) -> Document:
    mean, far, near = draw.number(20, 80), draw.number(2, 15), draw.number(1, 12)
    first, second, third = mean - far, mean + near, mean + far - near
    total = first + second + third
    return Document(
        f"What is the average of {first}, {second} and {third}?",
        f"The sum is {first} + {second} + {third} = {total}. There are 3 numbers, so the average is {total} / 3 = "
        f"{mean}.",
    )


def _equation(draw: Draw) -> Document:
    factor, unknown, added = draw.number(2, 12), draw.number(2, 30), draw.number(1, 50)
    total = factor * unknown + added
    return Document(
        f"Solve for x: {factor}x + {added} = {total}.",
        f"Subtract {added} from both sides: {factor}x is {total} - {added} = {total - added}. Divide both sides by "
        f"{factor}: x is {total - added} / {factor} = {unknown}. So x is {unknown}.",
    )


def _sequence(draw: Draw) -> Document:
    start, step = draw.number(1, 40), draw.number(2, 15)
    terms = [start + step * place for place in range(5)]
    return Document(
        f"Which number comes next: {', '.join(map(str, terms[:4]))}?",
        f"Each number is {step} more than the one before: {terms[0]} + {step} = {terms[1]}. After {terms[3]} comes "
        f"{terms[3]} + {step} = {terms[4]}.",
    )


KINDS: tuple[Callable[[Draw], Document], ...] = (
    _addition,
    _subtraction,
    _multiplication,
    _division,
    _percentage,
    _gift,
    _purchase,
    _journey,
    _rectangle,
    _average,
    _equation,
    _sequence,
)
