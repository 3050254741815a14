"""transformers answers as the engine does, in the form that is fastest."""

from pathlib import Path

import pytest

from benchmarks.common.checkpoint import SHAPES, build
from tests.benchmarks.common.support import SMALL_SHAPE
from tests.tiny import write_tiny_checkpoint

pytestmark = pytest.mark.oracle


def test_every_step_is_told_with_its_tokens(tmp_path: Path) -> None:
    from benchmarks.common.transformers_peer import EXPERTS, ForwardPeer

    peer = ForwardPeer(str(write_tiny_checkpoint(tmp_path)), "float32")
    ends = peer.answer(streams=3, prompt_tokens=8, max_tokens=4)
    assert [tokens for _, tokens in ends] == [3, 3, 3, 3]
    assert [at for at, _ in ends] == sorted(at for at, _ in ends)
    assert len(peer.answer(streams=1, prompt_tokens=8, max_tokens=1)) == 1
    assert peer.fastest.keys() == {"3 streams", "prefill 8"}
    assert set(peer.fastest.values()) <= set(EXPERTS)


def test_generate_tells_when_each_token_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.common import transformers_peer

    monkeypatch.setattr(transformers_peer, "DTYPES", ("float32",))
    monkeypatch.setattr(transformers_peer, "GENERATE_TRIAL_TOKENS", 2)
    directory = build(tmp_path, SHAPES["sparse"] | SMALL_SHAPE, 0, lambda done, total: None)
    peer = transformers_peer.GeneratePeer(str(directory))
    assert peer.tried.keys() == {f"float32 {experts}" for experts in transformers_peer.EXPERTS}
    arrivals = peer.generate("Hello", 3)
    assert 1 <= len(arrivals) <= 3 and arrivals == sorted(arrivals)
