"""Words of captions and messages."""


def counted(n: float, noun: str, form: str = ",") -> str:
    """A number with its noun, as "1 thread" and "2 threads".

    Args:
        n: how many.
        noun: what is counted, in the singular; its plural ends in s.
        form: how the number is formatted.
    """
    number = format(n, form)
    return f"{number} {noun}" if number == "1" else f"{number} {noun}s"
