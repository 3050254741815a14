"""Drawing by bisection gives the tokens of the reference that sorts, and each token has its probability."""

import pytest
import torch
from torch import Tensor

from octavo.engine.api import SamplingParams
from octavo.engine.compute import sampler
from octavo.engine.schedule.batch import Row
from octavo.model.config import ModelError
from octavo.model.kernels.gpu.sampling import LARGEST_VOCAB, draw, draw_reference
from octavo.model.ops import sampling

INF, NAN = float("inf"), float("nan")
Filters = tuple[int, float, float]  # top_k, top_p, min_p
FILTERS: dict[str, Filters] = {
    "none": (0, 1.0, 0.0),
    "top_k": (7, 1.0, 0.0),
    "top_p": (0, 0.8, 0.0),
    "min_p": (0, 1.0, 0.05),
    "all": (20, 0.85, 0.01),
}
each_filter = pytest.mark.parametrize("filters", FILTERS.values(), ids=FILTERS)


def random_logits(rows: int, vocab: int, spread: float, device: torch.device) -> Tensor:
    generator = torch.Generator(device).manual_seed(vocab)
    return torch.randn(rows, vocab, generator=generator, device=device) * spread


def controls(noise: Tensor, temperature: float = 1.0, filters: Filters = (0, 1.0, 0.0)) -> Tensor:
    """Returns the same controls for all rows, except for the noise [R], on the CPU."""
    same = torch.tensor([temperature, *filters], dtype=torch.float64)
    return torch.cat((noise.double()[:, None], same.expand(len(noise), -1)), 1)


def random_noise(rows: int) -> Tensor:
    return torch.rand(rows, dtype=torch.float64, generator=torch.Generator().manual_seed(rows))


def even_noise(rows: int) -> Tensor:
    """Returns the middles of equal parts of [0, 1), so that a token is drawn as often as it is likely, within one."""
    return (torch.arange(rows, dtype=torch.float64) + 0.5) / rows


def nearby(wanted: Tensor, noise: float, top_p: float) -> Tensor:
    """Returns controls that differ a little."""
    moved = wanted.clone()
    moved[:, 0] = (moved[:, 0] + noise).clamp(0, 1 - 2**-53)
    moved[:, 3] *= torch.where(moved[:, 3] < 1, 1 + top_p, 1)
    return moved


def assert_drawn_as_by_the_reference(logits: Tensor, wanted: Tensor, block: int) -> None:
    """Compares with the reference. Hardly any row may differ, and only as noise or top_p two millionths away would."""
    wanted, plain = wanted.to(logits.device), logits.float()  # A GPU sorts true vocabularies; a CPU takes minutes.
    drawn = draw(logits, wanted, block)
    exact = draw_reference(plain, wanted)
    assert (drawn == exact).double().mean() > 0.98
    nudges = [(noise, top_p) for noise in (0, -2e-6, 2e-6) for top_p in (0, -2e-6, 2e-6)]
    allowed = torch.stack([draw_reference(plain, nearby(wanted, *nudge)) for nudge in nudges])  # [9, R]
    assert (allowed == drawn).any(0).all()


@each_filter
@pytest.mark.parametrize(("temperature", "spread"), [(0.5, 3.0), (1.3, 0.3)])
def test_against_the_reference(device: torch.device, filters: Filters, temperature: float, spread: float) -> None:
    logits = random_logits(3, 150, spread, device)
    assert_drawn_as_by_the_reference(logits, controls(random_noise(3), temperature, filters), 256)


@pytest.mark.parametrize(("vocab", "block"), [(1, 16), (255, 256), (256, 256), (257, 256), (400, 128)])
def test_any_vocabulary_in_any_blocks(device: torch.device, vocab: int, block: int) -> None:
    logits = random_logits(2, vocab, 2.0, device)
    assert_drawn_as_by_the_reference(logits, controls(random_noise(2), 1.0, FILTERS["all"]), block)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_other_logits_than_float32(device: torch.device, dtype: torch.dtype) -> None:
    logits = random_logits(4, 200, 2.0, device).to(dtype)  # there are equal ones
    assert_drawn_as_by_the_reference(logits, controls(random_noise(4), 1.0, FILTERS["top_k"]), 256)


def test_rows_may_lie_anywhere(device: torch.device) -> None:
    wide = random_logits(4, 150, 2.0, device)
    noise = controls(random_noise(4)).to(device)
    for logits in (wide[:, 3:103], wide.T.contiguous().T[:, :100], wide[::2, 50:]):
        drawn = draw(logits, noise[: len(logits)], 128)
        assert torch.equal(drawn, draw(logits.clone(), noise[: len(logits)], 128))
        assert (drawn < logits.shape[1]).all()


@pytest.mark.parametrize("filters", [FILTERS["none"], FILTERS["all"]])
def test_a_row_depends_neither_on_its_neighbours_nor_on_the_blocks(device: torch.device, filters: Filters) -> None:
    logits, wanted = random_logits(2, 200, 1.0, device), controls(random_noise(2), 1.0, filters).to(device)
    together = draw(logits, wanted, 256)
    alone = [draw(*row, 256) for row in zip(logits.split(1), wanted.split(1), strict=True)]
    assert torch.equal(together, torch.cat(alone))
    assert torch.equal(together, draw(logits, wanted, 128))


@each_filter
def test_a_token_is_drawn_as_often_as_it_is_likely(device: torch.device, filters: Filters) -> None:
    """Shares of 40, 30, 20 and 10 %, far apart and in two blocks; top-p leaves the first three."""
    rows, shares = 8, {5: 0.3, 33: 0.2, 60: 0.1, 80: 0.4}
    logits = torch.full((rows, 90), -INF)
    logits[:, list(shares)] = torch.tensor(list(shares.values())).log()
    if filters[1] < 1:
        del shares[60]
    drawn = draw(logits.to(device), controls(even_noise(rows), 1.0, filters).to(device), 64).cpu()
    assert set(drawn.tolist()) == set(shares)
    for token, share in shares.items():
        assert abs((drawn == token).sum().item() - rows * share / sum(shares.values())) <= 1
    assert (drawn.diff() >= 0).all()  # in the order of the vocabulary


@pytest.mark.parametrize(
    ("filters", "kept"),
    [
        ((3, 1.0, 0.0), {0, 20, 40}),
        ((6, 1.0, 0.0), {*range(0, 100, 20), 1}),
        ((0, 0.5, 0.0), {0, 20, 40}),
        ((0, 0.0, 0.0), {0}),
        ((0, 1e-9, 0.0), {0}),
        ((1, 1.0, 0.0), {0}),
        ((0, 1.0, 1.0), set(range(0, 100, 20))),
        ((6, 1.0, 1.0), set(range(0, 100, 20))),
        ((4, 0.7, 0.3), {0, 20, 40}),
    ],
)
def test_of_equal_logits_the_lowest_ids_are_kept(device: torch.device, filters: Filters, kept: set[int]) -> None:
    """Draws from five tokens with one logit; all others have a lower one that counts for little."""
    rows = 2 * len(kept)
    logits = torch.full((1, 100), -9.0)
    logits[:, ::20] = -8.9 if 1 in kept else 0.0  # or for enough
    logits = logits.to(device).expand(rows, -1)
    assert set(draw(logits, controls(even_noise(rows), 1.0, filters).to(device), 64).tolist()) == kept


@each_filter
@pytest.mark.parametrize("temperature", [0.0, 1e-5, 1e30])
def test_extreme_temperatures(device: torch.device, filters: Filters, temperature: float) -> None:
    logits = torch.tensor([[-1e4, 1e4, 0.0, -INF]] * 3, device=device)
    drawn = draw(logits, controls(even_noise(3), temperature, filters).to(device), 16).tolist()
    if temperature < 1:
        assert drawn == [1, 1, 1]
    else:
        assert drawn == ([0, 1, 2] if filters[1] == 1 else drawn)
        assert 3 not in drawn


@each_filter
def test_rows_without_a_finite_maximum_have_no_token(device: torch.device, filters: Filters) -> None:
    bad = [0.0, NAN, 1.0], [INF, 0.0, 1.0], [-INF] * 3, [NAN] * 3
    logits = torch.tensor([*bad, [-INF, 2.0, -INF], [0.0, 40.0, 0.0]], device=device)
    wanted = controls(random_noise(6), 1.0, filters)
    wanted[5, 1] = 0.0
    assert draw(logits, wanted.to(device), 16).tolist() == [-1, -1, -1, -1, 1, 1]


def test_no_rows(device: torch.device) -> None:
    assert draw(torch.zeros(0, 5, device=device), controls(torch.zeros(0)).to(device)).shape == (0,)


def test_a_vocabulary_whose_weights_might_overflow_is_refused() -> None:
    with pytest.raises(ModelError, match="is larger than the 524287 that"):
        draw(torch.zeros(1, 1).expand(1, LARGEST_VOCAB + 1), controls(torch.zeros(1)))


def test_the_sampler_draws_the_same_by_the_kernel(device: torch.device) -> None:
    """Compares whole samplers, with edits, bans and what else happens before and after the draw."""
    logits = random_logits(4, 120, 2.0, device)
    asked = (
        SamplingParams(1, temperature=0.0, logit_bias=((7, 50.0),)),
        SamplingParams(1, seed=1, logprobs=2),
        SamplingParams(1, seed=2, top_p=0.7, repetition_penalty=1.5, min_tokens=9, stop_token_ids=(3, 4)),
        SamplingParams(1, seed=3, top_k=5),
    )
    rows = [Row("r", 0, (1,), (0,), params, n, history=(5, 6)) for n, params in enumerate(asked)]
    ours = sampler.draw(logits, rows, 115, None, draw).samples()
    plain = sampler.draw(logits.cpu(), rows, 115, None, sampling.draw).samples()
    assert [each.token for each in ours] == [each.token for each in plain]
    assert ours[0].token == 7
    assert [token for token, _ in ours[1].logprobs.top] == [token for token, _ in plain[1].logprobs.top]


@pytest.mark.cuda
@each_filter
@pytest.mark.parametrize("vocab", [32000, 151643])
@pytest.mark.parametrize(("temperature", "spread"), [(0.7, 2.0), (1.0, 5.0)])
def test_many_draws_from_true_vocabularies(
    device: torch.device, filters: Filters, vocab: int, temperature: float, spread: float
) -> None:
    for start in range(4):
        logits = random_logits(256, vocab + start, spread, device)[:, :vocab]
        wanted = controls(random_noise(256 + start)[:256], temperature, filters)
        assert_drawn_as_by_the_reference(logits, wanted, 4096)


@pytest.mark.cuda
def test_a_flat_vocabulary_is_drawn_from_evenly(device: torch.device) -> None:
    """All weights equal, and their sum the largest there is; or half of them kept."""
    for filters, kept in ((FILTERS["none"], 151643), ((0, 0.5, 0.0), 75822), ((1000, 1.0, 0.0), 1000)):
        logits = torch.zeros(1, 151643, device=device).expand(512, -1)
        drawn = draw(logits, controls(even_noise(512), 1.0, filters).to(device)).cpu()
        assert (drawn - (even_noise(512) * kept)).abs().max() <= 1


@pytest.mark.cuda
def test_drawing_is_captured_in_a_graph(device: torch.device) -> None:
    logits, wanted = random_logits(8, 32000, 3.0, device), controls(random_noise(8), 1.0, FILTERS["all"]).to(device)
    expected = draw(logits, wanted)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        drawn = draw(logits, wanted)
    drawn.fill_(-7)
    graph.replay()
    assert torch.equal(drawn, expected)
