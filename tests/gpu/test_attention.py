"""Compares paged attention on a device with its reference: ragged batches over scattered pages, cut, whole, windows."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from octavo.model.batch import ForwardBatch
from octavo.model.kernels.gpu.attention import attend
from octavo.model.kernels.gpu.attention_plan import AttentionTiles, GpuPlan, plan
from octavo.model.kernels.gpu.configs import Config
from octavo.model.kv_cache import KVCache, LayerCache
from octavo.model.ops.attention import attention_reference
from tests.model.pages import flat_batch

SMALL = Config(rows=16, tokens=1, inputs=16, warps=4, stages=2)
LARGE = Config(rows=64, tokens=64, inputs=16, warps=4, stages=2)
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
LENGTHS = (1, 15, 16, 17, 33, 200)

Rows = list[tuple[int, int]]  # tokens before, new tokens


class Case:
    """Sequences with blocks strewn over a cache, in which all that they do not own is NaN; made on the CPU."""

    def __init__(
        self, rows: Rows, heads: tuple[int, int] = (4, 2), head_dim: int = 16, block: int = 16, dtype=torch.float32
    ) -> None:
        torch.manual_seed(len(rows) + sum(map(sum, rows)))
        self.heads = heads
        width = max(-(-(before + new) // block) for before, new in rows) + 1
        scattered = torch.randperm(len(rows) * width + 1).int()
        table = scattered[1:].view(len(rows), width)
        slots = torch.full((2, len(scattered) * block + 1, heads[1], head_dim), float("nan"), dtype=dtype)
        for line, (before, new) in zip(table.long(), rows, strict=True):
            at = torch.arange(before + new)
            slots[:, line[at // block] * block + at % block] = torch.randn(2, len(at), *slots.shape[2:]).to(dtype)
            line[-(-(before + new) // block) :] = 0  # A ForwardBatch has these, too; block 0 belongs to nobody.
        self.batch = flat_batch([(n, before, [0] * new) for n, (before, new) in enumerate(rows)], table, block)
        keys, values = slots
        shape = (len(scattered), block, heads[1], head_dim)
        self.layer = LayerCache(keys[:-1].view(shape), values[:-1].view(shape), keys, values)
        self.q = torch.randn(len(self.batch.tokens), heads[0], head_dim).to(dtype)

    def tiles(self, processors: int = 1, short: Config = SMALL, long: Config = LARGE) -> AttentionTiles:
        return AttentionTiles(self.heads[1], self.heads[0] // self.heads[1], processors, short, long)

    def sinks(self) -> Tensor:
        """Returns sinks [Hq]: of some heads they count for nothing, of others for more than all keys."""
        return torch.linspace(-30, 9, self.heads[0])

    def expected(self, window: int | None = None, sinks: Tensor | None = None) -> Tensor:
        """Returns the expected result, [T, Hq * D]."""
        slots = self.batch.slots.clamp(min=0)
        k, v = self.layer.key_slots[slots], self.layer.value_slots[slots]  # The reference writes them once more.
        return attention_reference((self.q, k, v), self.layer, self.batch, window, sinks)

    def run(self, plan: GpuPlan, device: torch.device) -> Tensor:
        return attend(self.q.to(device), on(self.layer, device), plan).cpu()

    def check(self, device: torch.device, window: int | None = None, tiles: AttentionTiles | None = None) -> GpuPlan:
        made = self.plan(device, window, tiles)
        tolerance = TOLERANCE[self.q.dtype]
        torch.testing.assert_close(self.run(made, device), self.expected(window), rtol=tolerance, atol=tolerance)
        return made

    def plan(self, device: torch.device, window: int | None = None, tiles: AttentionTiles | None = None) -> GpuPlan:
        layer = on(self.layer, device)
        cache = KVCache((layer,), layer.keys.shape[1], layer.keys.shape[0])
        return plan(on(self.batch, device), cache, window, tiles or self.tiles())


def on(state, device: torch.device):
    """Returns a LayerCache or ForwardBatch with its tensors on the device; on the CPU, it is the same object."""
    tensors = {name: getattr(state, name) for name in state.__slots__}
    return replace(state, **{name: x.to(device) for name, x in tensors.items() if isinstance(x, Tensor)})


def decoding(*lengths: int) -> Rows:
    return [(length - 1, 1) for length in lengths]


@pytest.mark.parametrize("group", [1, 2, 4, 8])
@pytest.mark.parametrize("processors", [1, 6])
def test_decoding(group: int, processors: int, device: torch.device) -> None:
    case = Case(decoding(*LENGTHS), (group, 1))
    made = case.check(device, tiles=case.tiles(processors))
    assert made.launches[0].items is None  # nothing to upload


@pytest.mark.parametrize("splits", [1, 2, 3, 4, 5])
def test_any_number_of_splits(splits: int, device: torch.device) -> None:
    """Splits also into more parts than a short sequence has key tiles."""
    case = Case(decoding(200, 33, 170, 64), (4, 1))
    made = case.check(device, tiles=case.tiles(splits))  # 4 programs a processor, one for each of 4 sequences
    assert made.launches[0].splits == splits


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("head_dim", [16, 32, 64, 80, 96, 128])
def test_head_dimensions_and_dtypes(dtype: torch.dtype, head_dim: int, device: torch.device) -> None:
    case = Case([(30, 20), (49, 1), (6, 3)], (4, 1), head_dim, dtype=dtype)
    case.check(device, tiles=case.tiles(4))


@pytest.mark.parametrize("window", [None, 1, 16, 31, 1000])
@pytest.mark.parametrize("processors", [1, 8])
def test_chunks_in_the_middle_of_sequences(window: int | None, processors: int, device: torch.device) -> None:
    case = Case([(0, 40), (70, 1), (21, 35), (3, 4), (0, 1), (47, 1)], (2, 1))
    case.check(device, window, case.tiles(processors))


@pytest.mark.parametrize("window", [1, 15, 16, 17, 40, 1000])
@pytest.mark.parametrize("processors", [1, 6])
def test_decoding_in_a_window(window: int, processors: int, device: torch.device) -> None:
    case = Case(decoding(*LENGTHS), (2, 1))
    case.check(device, window, case.tiles(processors))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 17])
@pytest.mark.parametrize("processors", [1, 6])
@pytest.mark.parametrize("rows", [decoding(*LENGTHS), [(30, 20), (149, 1), (6, 3)]], ids=["decode", "mixed"])
def test_sinks(rows: Rows, processors: int, window: int | None, dtype: torch.dtype, device: torch.device) -> None:
    """A sink joins once, however many programs share a row's keys."""
    case = Case(rows, (4, 2), dtype=dtype)
    made = case.plan(device, window, case.tiles(processors))
    out = attend(case.q.to(device), on(case.layer, device), made, case.sinks().to(device)).cpu()
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(out, case.expected(window, case.sinks()), rtol=tolerance, atol=tolerance)


def test_sinks_of_padding_rows(device: torch.device) -> None:
    case = Case(decoding(40, 7))
    case.batch = replace(case.batch, kv_lens=torch.tensor([40, 0], dtype=torch.int32), kv_lens_host=(40, 0))
    for processors in 1, 8:
        made = case.plan(device, tiles=case.tiles(processors))
        out = attend(case.q.to(device), on(case.layer, device), made, case.sinks().to(device)).cpu()
        assert not out[1].any() and out[0].isfinite().all()


@pytest.mark.parametrize("scale", [0.5, 0.0078125])
def test_a_scale_of_its_own(scale: float, device: torch.device) -> None:
    case = Case([(30, 20), (49, 1), (6, 3)])
    out = attend(case.q.to(device), on(case.layer, device), case.plan(device), scale=scale).cpu()
    case.q *= scale * 16**0.5
    torch.testing.assert_close(out, case.expected(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("block", [1, 4, 32])
@pytest.mark.parametrize("rows", [decoding(31, 32, 33), [(15, 17), (16, 16), (0, 33)]], ids=["decode", "chunks"])
def test_block_boundaries(block: int, rows: Rows, device: torch.device) -> None:
    case = Case(rows, block=block)
    case.check(device, tiles=case.tiles(2))


@pytest.mark.parametrize("heads", [(3, 1), (6, 2), (20, 1), (5, 5)])
def test_groups_that_do_not_fill_a_tile(heads: tuple[int, int], device: torch.device) -> None:
    case = Case([(5, 30), (40, 1), (40, 3)], heads)
    case.check(device, tiles=case.tiles(short=replace(SMALL, rows=32)))


def test_a_mixed_step_is_its_parts_one_by_one(device: torch.device) -> None:
    rows = [(0, 40), (70, 1), (21, 35), (3, 4)]
    case = Case(rows, (2, 1))
    together = case.run(case.plan(device, 24), device)
    layer = on(case.layer, device)
    cache = KVCache((layer,), 16, layer.keys.shape[0])
    start = 0
    for n, (before, new) in enumerate(rows):
        alone = on(flat_batch([(n, before, [0] * new)], case.batch.block_table, 16), device)
        part = slice(start, start + new)
        q = case.q[part].to(device)
        result = attend(q, layer, plan(alone, cache, 24, case.tiles())).cpu()
        torch.testing.assert_close(result, together[part], rtol=1e-5, atol=1e-6)
        start += new


def test_a_long_row_beside_a_chunk_is_cut(device: torch.device) -> None:
    case = Case([(0, 40), (399, 1), (3, 1), (280, 10)], (2, 1))
    made = case.check(device, tiles=case.tiles(4))
    long, short = made.launches
    assert long.slots > long.folds == 1
    assert short.slots > short.folds == 1


@pytest.mark.parametrize("processors", [1, 8])
@pytest.mark.parametrize("rows", [decoding(40, 7, 90), [(20, 20), (6, 1), (89, 1)]], ids=["decode", "mixed"])
def test_padding_rows_give_zeros(rows: Rows, processors: int, device: torch.device) -> None:
    case = Case(rows)
    lens = (*case.batch.kv_lens_host[:1], 0, *case.batch.kv_lens_host[2:])
    table = case.batch.block_table.clone()
    table[1] = 0
    slots = case.batch.slots.clone()
    slots[-2] = -1
    kv_lens = torch.tensor(lens, dtype=torch.int32)
    case.batch = replace(case.batch, kv_lens=kv_lens, kv_lens_host=lens, block_table=table, slots=slots)
    made = case.plan(device, tiles=case.tiles(processors))
    out = case.run(made, device)
    assert not out[-2].any()
    torch.testing.assert_close(out, case.expected(), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("window", [None, 20])
def test_a_plan_for_decoding_outlives_its_lengths(window: int | None, device: torch.device) -> None:
    """Replays a plan like a captured graph: between replays only the contents of tensors change."""
    first, second = Case(decoding(90, 40, 17), (2, 1)), Case(decoding(3, 95, 64), (2, 1))
    made = first.plan(device, window, first.tiles(3))
    made.kv_lens.copy_(second.batch.kv_lens)
    made.table.zero_()[:, : second.batch.block_table.shape[1]] = second.batch.block_table.to(device)
    torch.testing.assert_close(second.run(made, device), second.expected(window), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("rows", [decoding(200, 33, 170), [(200, 1), (140, 20)]], ids=["decode", "mixed"])
def test_results_repeat_bit_by_bit(rows: Rows, device: torch.device) -> None:
    case = Case(rows, (2, 1))
    made = case.plan(device, tiles=case.tiles(4))
    assert torch.equal(case.run(made, device), case.run(made, device))


@pytest.mark.parametrize("processors", [1, 4, 132])
def test_listed_items_are_each_key_tile_once(processors: int) -> None:
    case = Case([(0, 40), (300, 1), (21, 35), (0, 1), (260, 18)])
    made = case.plan(torch.device("cpu"), 100, case.tiles(processors))
    seen: dict[tuple[int, int], list[int]] = {}
    for launch in made.launches:
        assert launch.items is not None
        items = launch.items.view(launch.count, -1)
        sizes = (items[:, 5] - items[:, 4]).tolist()
        assert sizes == sorted(sizes, reverse=True)  # The longest work starts first.
        for _, row, _, tokens, low, high, _ in items.tolist():
            seen.setdefault((row, tokens), []).extend(range(low, high))
    assert [row for first, tokens in sorted(seen) for row in range(first, first + tokens)] == list(range(len(case.q)))
    for (row, tokens), tiles in seen.items():
        first, *_, last = (*case.batch.positions[row : row + tokens].tolist(),) * 2
        assert sorted(tiles) == list(range(max(0, first - 99) // 16, last // 16 + 1))


def test_splits_follow_from_shapes() -> None:
    """Few long sequences are cut, many are not; and none into less than is worth a program."""

    def splits(count: int, blocks: int, window: int | None = None) -> int:
        meta = torch.empty(count, blocks, dtype=torch.int32, device="meta")
        batch = ForwardBatch(meta, meta, meta, meta, meta[:, 0], meta, meta, (1,) * count, (0,) * count)
        tiles = AttentionTiles(kv_heads=8, heads_per_kv=4, processors=132, short=replace(SMALL, inputs=64), long=LARGE)
        (launch,) = plan(batch, KVCache((), 16, 9), window, tiles).launches
        assert (launch.slots, launch.folds) == ((count * launch.splits, count) if launch.splits > 1 else (0, 0))
        return launch.splits

    assert splits(1, 2048) == 32
    assert splits(4, 2048) == 17
    assert splits(16, 2048) == 5
    assert splits(256, 2048) == 1
    assert splits(1, 16) == 2
    assert splits(1, 2048, window=192) == 2
