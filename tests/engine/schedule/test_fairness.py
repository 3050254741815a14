"""Measures waits on a simulated clock, where a step takes a fixed time and a time for each of its tokens."""

from statistics import median

from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.engine.api import Request
from tests.engine.fakes import check, engine, request

STEP_TOKENS = 256
FIXED, PER_TOKEN = 0.05, 0.0014  # seconds
LONGEST_STEP = FIXED + PER_TOKEN * STEP_TOKENS


class Clock:
    """A Clock is an engine whose steps take time. Requests come at any moment, and are seen before the next step."""

    def __init__(self, **changes) -> None:
        defaults = {"max_num_batched_tokens": STEP_TOKENS, "max_num_seqs": 64, "max_model_len": 10_000}
        self.engine = engine(4000, 16, **{**defaults, **changes})
        self.now = 0.0
        self.steps = 0
        self.came: dict[str, tuple[float, int]] = {}  # id -> seconds and steps at its arrival
        self.tokens: dict[str, list[tuple[float, int]]] = {}  # id -> seconds and steps at each of its tokens

    def add(self, *requests: Request) -> None:
        for each in requests:
            assert self.engine.add(each) is None
            self.came[each.id], self.tokens[each.id] = (self.now, self.steps), []

    def step(self) -> None:
        outputs = self.engine.step().outputs
        check(self.engine)
        self.steps += 1
        self.now += FIXED + PER_TOKEN * sum(count for _, count in self.engine.runner.steps[-1])
        for output in outputs:
            self.tokens[output.id] += [(self.now, self.steps)] * len(output.token_ids)

    def until_first_tokens(self, *names: str) -> None:
        while not all(self.tokens[name] for name in names or self.tokens):
            self.step()

    def waited(self, name: str) -> tuple[float, int]:
        """Returns seconds and steps from its arrival to its first token."""
        (seconds, steps), (came, before) = self.tokens[name][0], self.came[name]
        return seconds - came, steps - before


def prompt(name: str, length: int, max_tokens: int = 100) -> Request:
    """Returns a request that shares its prefix with no other name."""
    return request(name, [1] * length, max_tokens, cache_salt=name)


def alone(length: int) -> float:
    clock = Clock()
    clock.add(prompt("alone", length))
    clock.until_first_tokens()
    return clock.waited("alone")[0]


def test_equal_prompts_that_come_at_once_are_done_one_after_another():
    clock = Clock()
    names = [f"r{n}" for n in range(16)]
    clock.add(*(prompt(name, 512) for name in names))
    clock.until_first_tokens()
    waits = [clock.waited(name)[0] for name in names]
    assert waits == sorted(waits)
    assert waits[0] == alone(512)
    assert 0.45 < median(waits) / waits[-1] < 0.55


def test_a_short_prompt_passes_a_long_one():
    clock = Clock()
    clock.add(prompt("long", 8000))
    clock.step()
    clock.add(*(prompt(f"later{n}", 4000) for n in range(4)), prompt("short", 64))
    clock.until_first_tokens("short")
    assert clock.waited("short")[1] == 1
    assert not any(clock.tokens[name] for name in clock.tokens if name != "short")


def test_a_long_prompt_takes_at_most_twice_as_long_beside_any_number_of_short_ones():
    clock = Clock()
    clock.add(prompt("long", 8000))
    while not clock.tokens["long"]:
        clock.add(prompt(f"a{clock.steps}", 100, 2), prompt(f"b{clock.steps}", 100, 2))
        clock.step()
    assert 1.5 * alone(8000) < clock.waited("long")[0] < 2.1 * alone(8000)
    assert len(clock.engine.scheduler.waiting) == 0


def test_who_generates_gets_a_token_in_every_step_and_no_step_is_too_long():
    clock = Clock()
    clock.add(*(prompt(f"r{n}", 10, 40) for n in range(8)))
    clock.until_first_tokens()
    clock.add(*(prompt(f"long{n}", 3000) for n in range(4)))
    clock.until_first_tokens()
    for name in (f"r{n}" for n in range(8)):
        times = [seconds for seconds, _ in clock.tokens[name]]
        steps = [step for _, step in clock.tokens[name]]
        assert steps == list(range(steps[0], steps[0] + 40))
        assert max(after - before for before, after in zip(times, times[1:], strict=False)) < LONGEST_STEP + 1e-9


def test_what_is_waited_for_does_not_wait_longer_than_the_prompt_that_waits():
    """`claims` is about to compute the prefix that `shares` waits for; then prompts shorter than `claims` come."""
    clock, prefix = Clock(), [7] * 160
    clock.add(prompt("oldest", 8000))
    clock.add(request("claims", [*prefix, *range(900)]), request("shares", [*prefix, 1]))
    while not clock.tokens["shares"]:
        clock.add(prompt(f"r{clock.steps}", 400))
        clock.step()
        assert clock.steps < 5
    computed = [dict(rows).get("shares", 0) for rows in clock.engine.runner.steps]
    assert computed == [0, 0, 1]


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    requests=st.lists(st.tuples(st.integers(0, 12), st.integers(1, 90), st.integers(1, 8)), min_size=1, max_size=12),
    budget=st.integers(12, 40),
)
def test_nobody_starves(requests, budget):
    """The oldest prompt gets half of the tokens that generating sequences leave in each step, so its turn comes."""
    clock = Clock(max_num_batched_tokens=budget, max_num_seqs=12)
    coming = {n: (at, prompt(f"r{n}", length, new)) for n, (at, length, new) in enumerate(requests)}
    while coming or clock.engine.has_work():
        for n in [n for n, (at, _) in coming.items() if at <= clock.steps or not clock.engine.has_work()]:
            clock.add(coming.pop(n)[1])
        clock.step()
    least = -(-(budget - 11) // 2)
    order = sorted(clock.came, key=lambda name: (clock.came[name][1], list(clock.came).index(name)))
    lengths = {f"r{n}": length for n, (_, length, _) in enumerate(requests)}
    for index, name in enumerate(order):
        assert clock.waited(name)[1] <= sum(-(-lengths[older] // least) for older in order[: index + 1])
