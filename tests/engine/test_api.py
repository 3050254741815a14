"""Tests what a request costs on its way between the processes, and which control of experts is refused."""

import pickle
from array import array
from dataclasses import replace
from math import inf, nan

import pytest

from octavo.engine.api import ExpertControl, ExpertShape, Request, SamplingParams


def test_a_prompt_travels_as_an_array_of_four_bytes_a_token():
    prompt = tuple(range(100_000, 132_000))
    sent = Request("a", prompt, SamplingParams(5, seed=7), "salt")
    message = pickle.dumps(sent)
    assert len(message) < 4 * len(prompt) + 1000
    received = pickle.loads(message)
    assert received.prompt == array("i", prompt)
    assert (received.id, received.params, received.cache_salt) == (sent.id, sent.params, sent.cache_salt)


SHAPE = ExpertShape(layers=(1, 2, 3, 5), experts=4, top_k=2, identical=False)
REFUSED = {
    "Layer 4 has no experts": ExpertControl(masked=((4, 0),)),
    "Layer -1 has no experts": ExpertControl(biases=((-1, 0, 1.0),)),
    "take one of 1, 2, 3, 5.": ExpertControl(biases=((0, 0, 1.0),)),
    "no expert 4": ExpertControl(masked=((5, 4),)),
    "no expert -1": ExpertControl(biases=((5, -1, 1.0),)),
    "has the experts 0 to 3": ExpertControl(masked=((5, 9),)),
    "must be a finite number": ExpertControl(biases=((1, 0, inf),)),
    "finite number; mask": ExpertControl(biases=((1, 0, nan),)),
    "Layer 3 has 4 experts, and each token needs 2: mask at most 2": ExpertControl(masked=((3, 0), (3, 2), (3, 1))),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_no_router_can_do_is_refused_in_a_sentence(reason: str) -> None:
    assert reason in str(SHAPE.why_refused(REFUSED[reason]))


@pytest.mark.parametrize(
    "control",
    [
        ExpertControl(),
        ExpertControl(masked=((3, 0), (3, 2), (1, 1), (3, 0))),  # twice the same is one
        ExpertControl(masked=((5, 3),), biases=((1, 0, -1e30), (5, 3, 2.0))),
    ],
)
def test_what_leaves_enough_experts_is_allowed(control: ExpertControl) -> None:
    assert SHAPE.why_refused(control) is None


def test_layers_in_a_row_are_named_as_a_range() -> None:
    shape = replace(SHAPE, layers=(2, 3, 4, 5))
    assert "take one of 2 to 5." in str(shape.why_refused(ExpertControl(masked=((0, 0),))))
