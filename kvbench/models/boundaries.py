"""Where sentences and clauses of a prompt end."""

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

SENTENCE = ".!?\n\u3002\uff01\uff1f"
CLAUSE = ",;:\uff0c\uff1b\uff1a\u3001"
CLOSING = "\"')]}\u201d\u2019"


def boundaries(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> Tensor:
    """Marks the tokens that end a sentence (2) or a clause (1), the others 0: int8 `[T]`.

    A mark counts where white space follows (not in 3.14), or where it is a line break or one of a script that
    has no spaces. Closing quotes and brackets in the same token belong to it.
    """
    texts = tokenizer.batch_decode([[i] for i in ids])
    # a token's leading space is lost where it is decoded alone (SentencePiece)
    pairs = tokenizer.batch_decode([ids[n : n + 2] for n in range(len(ids))])
    found = torch.zeros(len(ids), dtype=torch.int8)
    for n, (text, pair) in enumerate(zip(texts, pairs, strict=True)):
        mark = text.rstrip(" " + CLOSING)[-1:]
        following = pair[len(text) :][:1]
        free = mark == "\n" or mark > "\u2000" or text.endswith(" ") or not following or following.isspace()
        if mark and free:
            found[n] = 2 if mark in SENTENCE else int(mark in CLAUSE)
    return found
