"""Ends of sentences and clauses in a prompt."""

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

SENTENCE = ".!?\n\u3002\uff01\uff1f"
CLAUSE = ",;:\uff0c\uff1b\uff1a\u3001"
CLOSING = "\"')]}\u201d\u2019"


def boundaries(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> Tensor:
    """2 for tokens that end a sentence, 1 for tokens that end a clause, else 0: int8 `[T]`.

    A punctuation mark counts if white space follows (not in 3.14), or if it is a line break or belongs to a script
    without spaces. Closing quotes and brackets in the same token may follow it.
    """
    texts = tokenizer.batch_decode([[i] for i in ids])
    # decoding a token alone loses its leading space (SentencePiece)
    pairs = tokenizer.batch_decode([ids[n : n + 2] for n in range(len(ids))])
    found = torch.zeros(len(ids), dtype=torch.int8)
    for n, (text, pair) in enumerate(zip(texts, pairs, strict=True)):
        mark = text.rstrip(" " + CLOSING)[-1:]
        following = pair[len(text) :][:1]
        free = mark == "\n" or mark > "\u2000" or text.endswith(" ") or not following or following.isspace()
        if mark and free:
            found[n] = 2 if mark in SENTENCE else int(mark in CLAUSE)
    return found
