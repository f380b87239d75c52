"""Wording of captions and messages."""


def counted(n: float, noun: str, form: str = ",") -> str:
    """A number with its noun, as "1 thread" or "2 threads".

    Args:
        n: the number.
        noun: the noun in the singular; its plural ends in s.
        form: format of the number.
    """
    number = format(n, form)
    return f"{number} {noun}" if number == "1" else f"{number} {noun}s"
