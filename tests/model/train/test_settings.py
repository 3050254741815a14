"""Experts follow from the domains, and routers' targets from the experts."""

import pytest
import torch

from octavo.model.config import ModelError
from octavo.model.train.settings import Settings, experts_for, targets

NAMES = ("code", "law", "songs")


def test_each_domain_has_an_expert_beside_the_original() -> None:
    experts = experts_for(Settings(), NAMES)
    assert [(each.name, each.domains) for each in experts] == [
        ("original", ()),
        ("code", (0,)),
        ("law", (1,)),
        ("songs", (2,)),
    ]
    assert torch.equal(targets(experts, 3)[:, 1:], torch.eye(3))


def test_further_experts_are_mixtures_of_neighbours() -> None:
    experts = experts_for(Settings(experts=8), NAMES)
    assert [each.domains for each in experts[4:]] == [(0, 1), (1, 2), (2, 0), (0, 1)]
    assert len({each.name for each in experts}) == 8
    shares = targets(experts, 3)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(3))
    assert shares[0].tolist() == pytest.approx([0, 0.4, 0, 0, 0.2, 0, 0.2, 0.2])


def test_a_kept_domain_belongs_to_the_original() -> None:
    experts = experts_for(Settings(keep="law"), NAMES)
    assert [each.name for each in experts] == ["original", "code", "songs"]
    assert targets(experts, 3).tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize(
    ("settings", "names", "words"),
    [
        (Settings(experts=3), NAMES, "3 domains and the original need 4 experts, and --experts says 3"),
        (Settings(top_k=5), NAMES, "--top-k is 5, and there are 4 experts"),
        (Settings(keep="prose"), NAMES, "--keep names the domain prose"),
        (Settings(keep="law"), ("law",), "The only domain is kept"),
    ],
)
def test_what_does_not_fit_is_refused(settings: Settings, names: tuple[str, ...], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        experts_for(settings, names)
