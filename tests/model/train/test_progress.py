"""The meter tells the loss, the speed and the time that is left, by what the work has taken so far."""

from octavo.model.train.progress import Meter


class Told:
    """Collects what is told, beside a clock that a test moves."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.now = 100.0
        self.meter = Meter(
            lambda what, done, total, note: self.notes.append(note), planned=1000.0, clock=lambda: self.now
        )

    def step(self, seconds: float, loss: float = 2.0) -> None:
        self.now += seconds
        self.meter.step("expert", (1, 10), loss, (500, 10.0))


def test_time_left_follows_the_pace() -> None:
    told = Told()
    told.meter.begin()
    told.step(10)
    assert told.notes == ["loss 2.000, 50 tokens/s, 16 minutes left"]  # 990 seconds
    told.step(30)  # twice as slow as planned
    assert told.notes[-1] == "loss 2.000, 25 tokens/s, 33 minutes left"


def test_what_an_earlier_run_has_done_says_nothing_of_the_pace() -> None:
    told = Told()
    told.meter.begin()
    told.meter.skip(900)
    told.step(10)
    assert told.notes == ["loss 2.000, 50 tokens/s, 2 minutes left"]


def test_the_loss_is_smoothed_and_begins_anew() -> None:
    told = Told()
    told.meter.begin()
    told.step(1, loss=2.0)
    told.step(1, loss=3.0)
    assert told.notes[-1].startswith("loss 2.100")
    told.meter.begin()
    told.step(1, loss=5.0)
    assert told.notes[-1].startswith("loss 5.000")
