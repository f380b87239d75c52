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


def one_line(error: BaseException, longest: int = 300) -> str:
    """Kind and text of an exception without line breaks."""
    # jinja2 and transformers have exceptions whose own text cannot be made
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = ""
    text = text if len(text) <= longest else text[:longest] + " ..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
