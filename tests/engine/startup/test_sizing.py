"""Sizes are chosen for a machine, and the user is told when something does not fit."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from octavo.engine.config import EngineConfig
from octavo.engine.startup import sizing
from octavo.model.config import ModelError
from octavo.model.weights.reserve import PAGE
from tests.tiny import TINY_CONFIG

CONFIG = EngineConfig("model")
Seconds = Callable[[int], float]  # by the tokens of a step
MODEL = replace(TINY_CONFIG, num_attention_heads=1, num_key_value_heads=1, head_dim=8, max_position_embeddings=4096)
LARGE = replace(MODEL, hidden_size=1024, intermediate_size=4096, num_hidden_layers=4, vocab_size=32_000)


def test_the_cache_is_half_as_large_as_the_weights_within_bounds_and_half_of_what_is_left() -> None:
    assert sizing.cpu_cache_bytes(CONFIG, 9 * sizing.GIB, 6 * sizing.GIB) == 3 * sizing.GIB
    assert sizing.cpu_cache_bytes(CONFIG, 9 * sizing.GIB, 60 * sizing.GIB) == 4 * sizing.GIB
    assert sizing.cpu_cache_bytes(CONFIG, 6 * sizing.GIB, 60 * sizing.GIB) == 3 * sizing.GIB
    assert sizing.cpu_cache_bytes(CONFIG, 1, 60 * sizing.GIB) == sizing.GIB
    assert sizing.cpu_cache_bytes(replace(CONFIG, kv_cache_memory=500), 1, 1000) == 500


def test_weights_that_the_memory_cannot_hold_are_refused() -> None:
    sizing.check_weights(100, 100)
    with pytest.raises(ModelError, match="take 3.0 GiB and 2.0 GiB of memory are left: .* serve a smaller model"):
        sizing.check_weights(3 * sizing.GIB, 2 * sizing.GIB)


def test_the_widest_weights_that_would_fit_are_named() -> None:
    others = {"none": 30 * sizing.GIB, "int8": 15 * sizing.GIB, "int4": 8 * sizing.GIB}
    with pytest.raises(ModelError, match="choose --quantization int8, which takes 15.0 GiB"):
        sizing.check_weights(30 * sizing.GIB, 24 * sizing.GIB, others)
    with pytest.raises(ModelError, match="choose --quantization int4, which takes 8.0 GiB"):
        sizing.check_weights(30 * sizing.GIB, 10 * sizing.GIB, others)
    with pytest.raises(ModelError, match="serve a smaller model"):
        sizing.check_weights(30 * sizing.GIB, 7 * sizing.GIB, others)


def test_ids_beyond_the_tokenizer_or_the_model_are_never_sampled() -> None:
    assert [sizing.sampled_vocab(replace(CONFIG, sampled_vocab=n), MODEL) for n in (None, 90, 120)] == [100, 90, 100]


def test_more_cache_than_memory_is_refused() -> None:
    with pytest.raises(ModelError, match="asks for 2.00 GiB and 1.00 GiB of memory are left: lower it"):
        sizing.cpu_cache_bytes(replace(CONFIG, kv_cache_memory=2 * sizing.GIB), 1, sizing.GIB)


@pytest.mark.parametrize(
    ("rows", "expected"), [((4,), 500), ((1, 4), 500 + 20), ((1, 2, 4, 8), 500 + 3 * 20 + 10 * (1 + 3))]
)
def test_graphs_share_their_memory_but_not_their_logits(rows: tuple[int, ...], expected: int) -> None:
    assert sizing.graph_bytes(500, 20, rows, 10) == expected


def test_a_cache_holds_whole_blocks() -> None:
    size = sizing.size_cache(CONFIG, cache_bytes=1000 * 16 * 10 + 159, bytes_per_token=10)
    assert (size.num_blocks, size.tokens) == (1000, 16_000)


@pytest.mark.parametrize("cache_bytes", [-5, 0, 159])
def test_no_room_for_a_block_is_refused(cache_bytes: int) -> None:
    with pytest.raises(ModelError, match="no room for a KV cache"):
        sizing.size_cache(CONFIG, cache_bytes, bytes_per_token=10)


def test_the_context_is_the_models_as_far_as_the_cache_holds_it() -> None:
    small, large = sizing.CacheSize(100, 16, 10), sizing.CacheSize(1000, 16, 10)
    assert sizing.choose_max_model_len(CONFIG, MODEL, large) == 4096
    assert sizing.choose_max_model_len(CONFIG, MODEL, small) == 1600
    assert "the model could take 4,096" in small.describe(1600, MODEL)
    assert large.describe(4096, MODEL).endswith("3.9 sequences of 4,096 tokens")


def test_a_context_that_was_asked_for_fits_or_is_refused() -> None:
    size = sizing.CacheSize(100, 16, 10)
    assert sizing.choose_max_model_len(replace(CONFIG, max_model_len=1600), MODEL, size) == 1600
    with pytest.raises(ModelError, match="2000 does not fit the KV cache of 1600 tokens: lower it to 1600 or raise"):
        sizing.choose_max_model_len(replace(CONFIG, max_model_len=2000), MODEL, size)


def test_a_reserve_is_less_than_the_quantised_weights_will_take() -> None:
    weights = LARGE.num_parameters() - LARGE.vocab_size * LARGE.hidden_size  # without the embedding
    for name, least, most in (("auto", 0.9, 1.0625), ("int8", 0.9, 1.0625), ("int4", 0.45, 0.625)):
        size = sizing.bytes_to_reserve(replace(CONFIG, quantization=name), LARGE, available=10**15)
        assert size % PAGE == 0 and least * weights < size < most * weights


@pytest.mark.parametrize("changes", [{"quantization": "none"}, {"quantization": "fp8"}, {"device": "cuda"}])
def test_nothing_is_reserved_for_weights_that_lie_elsewhere(changes: dict[str, Any]) -> None:
    assert sizing.bytes_to_reserve(replace(CONFIG, **changes), LARGE, available=10**15) == 0


def test_a_reserve_is_in_nobodys_way() -> None:
    """Weights in float32, the largest that there are, are refused or accepted as without a reserve."""
    float32 = 4 * LARGE.num_parameters()
    assert sizing.bytes_to_reserve(CONFIG, LARGE, available=float32) == 0
    size = sizing.bytes_to_reserve(CONFIG, LARGE, available=2 * float32)
    assert 0 < size <= float32


@pytest.mark.parametrize("wanted", [None, 3 * sizing.GIB])
def test_a_reserve_for_the_cache_holds_it_and_does_not_make_it_smaller(wanted: int | None) -> None:
    config, weights = replace(CONFIG, kv_cache_memory=wanted), 5 * sizing.GIB
    cache = sizing.cpu_cache_bytes(config, weights, available=10**15)
    assert cache <= sizing.cache_bytes_to_reserve(config, weights, 10**15) <= cache + 2 * PAGE
    assert sizing.cache_bytes_to_reserve(config, weights, weights + 2 * cache) == 0
    just = weights + 3 * cache
    taken = sizing.cache_bytes_to_reserve(config, weights, just)
    assert sizing.cpu_cache_bytes(config, weights, just - taken - weights + 2 * PAGE) == cache


@pytest.mark.parametrize(("wanted", "words"), [(4097, "beyond the 4096 positions"), (1, "at least 2")])
def test_a_context_that_no_cache_could_hold_is_refused_before_loading(wanted: int, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        sizing.check_max_model_len(replace(CONFIG, max_model_len=wanted), MODEL)


def curve(fixed: float, experts: float, each: float) -> Seconds:
    """Returns the seconds of a step by its tokens: weights are always read, experts as they are met."""
    return lambda tokens: fixed + experts * (1 - 0.75**tokens) + each * tokens


@pytest.mark.parametrize(
    ("fixed", "experts", "each", "expected"),
    [
        (0.0, 0.0, 0.0, 2048),  # never too long
        (0.0, 0.0, 0.4 / 200, 200),
        (0.1, 0.1, 0.001, 200),
        (0.04, 0.06, 0.0024, 120),
        (0.01, 0.02, 0.0001, 2048),
        (0.1, 0.1, 0.02, 16),  # slow, but fewer tokens are hardly faster
        (3.0, 0.0, 1.0, 16),
    ],
)
def test_a_step_is_as_large_as_its_time_allows(fixed: float, experts: float, each: float, expected: int) -> None:
    asked, seconds = [], curve(fixed, experts, each)

    def took(tokens: int) -> float:
        asked.append(tokens)
        return seconds(tokens)

    found = sizing.measure_step_tokens(took)
    assert expected * 0.94 <= found <= expected
    assert found % 8 == 0 and len(asked) <= sizing.PROBES * sizing.REPEATS
    assert all(seconds(tokens) <= sizing.STEP_SECONDS + 1e-9 for tokens in asked if tokens > 16)
    assert sum(map(seconds, asked)) < 3.5 or expected == 16


def test_moments_in_which_the_machine_is_busy_change_nothing() -> None:
    quiet = curve(0.04, 0.06, 0.0024)
    calls = iter(range(1000))
    found = sizing.measure_step_tokens(lambda tokens: quiet(tokens) * (1 if next(calls) % 2 else 2.5))
    assert found == sizing.measure_step_tokens(quiet)


def test_a_step_that_takes_no_longer_than_expected_is_not_repeated() -> None:
    asked, quiet = [], curve(0.04, 0.06, 0.0012)

    def took(tokens: int) -> float:
        asked.append(tokens)
        return quiet(tokens)

    sizing.measure_step_tokens(took)
    first, again, second, once_more, *others = asked  # A line needs two sizes.
    assert (first, second) == (again, once_more)
    assert others and len(set(others)) == len(others)


@pytest.mark.parametrize("seconds", [lambda tokens: 0.2, lambda tokens: 0.3 if tokens == 16 else 0.1])
def test_times_that_make_no_sense_have_an_end(seconds: Seconds) -> None:
    assert sizing.measure_step_tokens(seconds) == 2048


def test_routes_that_the_host_has_no_room_for_are_refused() -> None:
    sizing.check_routes(sizing.GIB, sizing.GIB)
    with pytest.raises(ModelError, match=r"takes 2.00 GiB of the host's memory and 1.00 GiB are left: free some"):
        sizing.check_routes(2 * sizing.GIB, sizing.GIB)
