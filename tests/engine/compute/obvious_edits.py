"""Edits logits the obvious way: one after the other, by the definitions of the parameters."""

from collections.abc import Sequence

from hypothesis import strategies as st

from octavo.engine.api import SamplingParams
from octavo.engine.schedule.batch import Row

VOCAB = 12
INF = float("inf")


def obvious_edits(logits: Sequence[float], params: SamplingParams, text: Sequence[int], output: int) -> list[float]:
    """Returns the logits that the next token is chosen by. The last `output` tokens of the text were generated."""
    edited = []
    generated = list(text)[len(text) - output :]
    for token, logit in enumerate(logits):
        if token in text:
            logit = logit / params.repetition_penalty if logit > 0 else logit * params.repetition_penalty
        logit -= params.frequency_penalty * generated.count(token)
        logit -= params.presence_penalty * (token in generated)
        logit += dict(params.logit_bias).get(token, 0.0)
        if output < params.min_tokens and token in params.stop_token_ids:
            logit = -INF
        edited.append(logit)
    return edited


def edited_row(params: SamplingParams, text: Sequence[int], output: int) -> Row:
    """Returns a row that samples the token behind the text. The last `output` tokens of the text were generated."""
    history = tuple(text) if params.looks_back else ()
    return Row("r", 0, tuple(text[-1:]), (0,), params, output, history=history)


TOKENS = st.integers(0, VOCAB - 1)
PARAMS = st.builds(
    SamplingParams,
    max_tokens=st.just(9),
    logit_bias=st.dictionaries(TOKENS, st.floats(-100, 100), max_size=3).map(lambda biases: tuple(biases.items())),
    presence_penalty=st.sampled_from([0.0, -2.0, 0.7]),
    frequency_penalty=st.sampled_from([0.0, -1.0, 2.0]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.5]),
    min_tokens=st.integers(0, 4),
    stop_token_ids=st.lists(TOKENS, max_size=3, unique=True).map(tuple),
)
# A case is parameters, a prompt, outputs, and a logit for each token.
CASES = st.lists(
    st.tuples(
        PARAMS,
        st.lists(TOKENS, min_size=1, max_size=5),
        st.lists(TOKENS, max_size=6),
        st.lists(st.floats(-9, 9), min_size=VOCAB, max_size=VOCAB),
    ),
    min_size=1,
    max_size=4,
)
