"""Text is split by document, with no copy on two sides, and rows repeat exactly."""

import pytest
import torch

from octavo.model.config import ModelError
from octavo.model.train.corpus import Document, DomainRows, Mixture, batch_of, padded, split
from tests.model.train.training import LENGTH, documents, domains


def contents(found: tuple[Document, ...]) -> set[tuple[int, ...]]:
    return {tuple(document.tokens.tolist()) for document in found}


def test_no_document_is_in_two_parts_nor_is_a_copy() -> None:
    one, other = documents(20, 30), documents(40, 30)
    found = split([("a", one + one[:9]), ("b", other + one[:20])], seed=0, length=LENGTH)
    parts = [contents(part) for each in found for part in (each.train, each.validation, each.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 60
    assert [(len(d.train), len(d.validation), len(d.test)) for d in found] == [(21, 3, 6), (21, 3, 6)]


def test_the_split_depends_on_the_seed_and_not_on_the_order() -> None:
    def test_part(seed: int, turned: bool = False) -> list[list[int]]:
        texts = documents(20, 30)
        (found,) = split([("a", texts[::-1] if turned else texts)], seed, LENGTH)
        return [document.tokens.tolist() for document in found.test]

    assert test_part(0) == test_part(0, turned=True) != test_part(1)


def test_the_held_out_parts_are_bounded() -> None:
    (found,) = split([("a", documents(20, 400))], 0, LENGTH)
    assert (len(found.validation), len(found.test)) == (16, 32)
    (small,) = split([("a", documents(20, 12))], 0, LENGTH)
    assert (len(small.train), len(small.validation), len(small.test)) == (6, 2, 4)


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (documents(20, 11), "law has 11 different documents of 8 tokens or more, and 12 are needed"),
        (documents(20, 11) + documents(40, 50, length=7), "has 11 different documents"),
        (documents(20, 1) * 50, "has 1 different documents"),
        (documents(20, 12, length=8), "has 48 tokens to train with after 6 documents are put aside, and 64"),
        ([Document(each.tokens, 20) for each in documents(20, 30)], "has 0 different documents"),
    ],
)
def test_too_little_text_is_refused_with_what_is_needed(texts: list[Document], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        split([("law", texts)], 0, LENGTH)


def test_rows_cover_an_epoch_once_then_come_in_another_order() -> None:
    domain = domains()[0]
    rows, count = DomainRows(domain, 3, LENGTH, seed=0), domain.tokens() // LENGTH
    epochs = [[tuple(rows.row(e * count + n).tokens.tolist()) for n in range(count)] for e in range(2)]
    text = torch.cat([document.tokens for document in domain.train])
    windows = sorted(tuple(text[n * LENGTH : (n + 1) * LENGTH].tolist()) for n in range(count))
    assert sorted(epochs[0]) == sorted(epochs[1]) == windows and epochs[0] != epochs[1]
    again = DomainRows(domain, 3, LENGTH, seed=0)
    assert tuple(again.row(count + 1).tokens.tolist()) == epochs[1][1] and again.row(0).domain == 3


def test_prompts_and_first_tokens_do_not_count() -> None:
    texts = [Document(document.tokens, 5) for document in documents(20, 30)]
    (domain,) = split([("a", texts)], 0, 20)  # so that each row is a document
    row = DomainRows(domain, 0, 20, seed=0).row(0)
    assert row.counted.tolist() == [False] * 5 + [True] * 15
    (plain,) = split([("a", documents(20, 30))], 0, 10)
    assert DomainRows(plain, 0, 10, seed=0).row(0).counted.tolist() == [False] + [True] * 9


def test_a_mixture_takes_turns_and_a_mixture_of_mixtures_sees_the_same_rows() -> None:
    parts = [DomainRows(domain, n, LENGTH, seed=0) for n, domain in enumerate(domains())]
    batch = batch_of(Mixture(tuple(parts)), step=1, count=4)
    assert batch.domains.tolist() == [0, 1, 0, 1]
    assert torch.equal(batch.tokens[2], parts[0].row(3).tokens) and torch.equal(batch.tokens[1], parts[1].row(2).tokens)
    nested = Mixture((Mixture((parts[0],)), Mixture(tuple(parts))))
    assert torch.equal(nested.row(3).tokens, parts[1].row(0).tokens)


def test_documents_are_cut_to_what_counts() -> None:
    long = Document(torch.arange(100), 70)
    cut = long.cut(20)
    assert len(cut.tokens) == 20 and cut.tokens[cut.first] == 70
    batch = padded([Document(torch.arange(6), 1), Document(torch.arange(40), 2)], 1, 10)
    assert batch.tokens.shape == (2, 10) and batch.domains.tolist() == [1, 1]
    assert batch.counted.sum(dim=1).tolist() == [5, 8] and not batch.counted[0, 6:].any()
