"""The tokenizer of a model of random weights: byte-level BPE, in which every id decodes to text of its own."""

from itertools import chain, islice, product
from string import ascii_lowercase

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.pre_tokenizers import ByteLevel

SPECIAL = ("<unk>", "<s>", "</s>")
BOS, EOS = 1, 2
BYTES = len(SPECIAL)  # the first of 256
TEMPLATE = "{% for message in messages %}{{ message.content }}\n{% endfor %}"

# Pairs of letters are merged, as in a learned vocabulary, so that English takes about half as many tokens as letters.
MERGES = tuple(product(ascii_lowercase, repeat=2))


def vocabulary(size: int) -> tuple[str, ...]:
    """The tokens by id: special ones, bytes, pairs of letters, and words that no text is encoded to, up to the size."""
    words = ("Ġ" + "".join(letters) for letters in product(ascii_lowercase, repeat=4))  # Ġ is a space
    alphabet = sorted(ByteLevel.alphabet())
    return tuple(islice(chain(SPECIAL, alphabet, ("".join(pair) for pair in MERGES), words), size))


def tokenizer(size: int) -> Tokenizer:
    """Of at least 259 ids: a text begins with <s>."""
    ids = {token: number for number, token in enumerate(vocabulary(size))}
    merges = [pair for pair in MERGES if "".join(pair) in ids]
    backend = Tokenizer(models.BPE(vocab=ids, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL))
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return backend
