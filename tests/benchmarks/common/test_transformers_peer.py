"""transformers answers as the engine does: a step for every token, with each load in the form that is fastest."""

from pathlib import Path

import pytest

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
