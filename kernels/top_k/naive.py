"""Selection by sorting: the slow reference."""

from torch import Tensor


def select_tokens(scores_P: Tensor, tokens: int, page: int, length: int) -> list[int]:
    """Slots of the pages of highest score until they hold `tokens` tokens, ascending.

    Args:
        scores_P: one score per page.
        tokens: slots wanted.
        page: tokens per page; 1 makes this the top-k of slots.
        length: slots in use; the last page may be partial.
    """
    scores = scores_P.tolist()
    # sorted keeps the order of equal pages
    ranked = sorted(range(-(-length // page)), key=lambda n: -scores[n])
    slots = [slot for n in ranked for slot in range(n * page, min((n + 1) * page, length))]
    return sorted(slots[:tokens])
