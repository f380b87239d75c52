"""Numbers as the tables of the vLLM experiments show them, and their bar panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kvbench.report import style


def number(value: float | None, form: str) -> str:
    """A formatted number, or a dash for what is not known."""
    return "-" if value is None else format(value, form)


def milliseconds(seconds: float | None) -> str:
    """Seconds as milliseconds, or a dash."""
    return (
        "-" if seconds is None else f"{1000 * seconds:,.0f}" if seconds >= 0.01 else f"{1000 * seconds:.2f}"
    )


def scaled(value: float | None, factor: float) -> float | None:
    """A value in another unit; what is not known stays so."""
    return None if value is None else factor * value


def figure_of(panels: Mapping[str, Mapping[str, Sequence[float | None]]], note: str) -> style.Figure:
    """Horizontal bars, one panel per quantity and one row per label; further values of a row are drawn as lighter bars.

    Args:
        panels: per title the values of each label; None is not known and not drawn.
        note: small print below.
    """
    count = max(len(bars) for bars in panels.values())
    figure, all_axes = style.panels(len(panels), height=0.9 + 0.24 * count)
    for axes, (title, bars) in zip(all_axes, panels.items(), strict=True):
        for place, values in enumerate(bars.values()):
            known = [(order, value) for order, value in enumerate(values) if value is not None]
            # the longest first, so that the shorter ones stay visible on top of it
            for order, value in sorted(known, key=lambda item: -item[1]):
                axes.barh(place, value, color=style.COLOURS[0], alpha=1.0 if order == 0 else 0.35)
            text = ", ".join("-" if value is None else _short(value) for value in values)
            axes.text(
                max((value for _, value in known), default=0.0), place, f"  {text}", va="center", fontsize=8
            )
        axes.set_yticks(range(len(bars)), list(bars))
        axes.set_ylim(len(bars) - 0.4, -0.6)
        longest = max(
            (value for values in bars.values() for value in values if value is not None), default=0.0
        )
        axes.set_xlim(0, 1.35 * max(longest, 1e-9))
        axes.grid(visible=False, axis="y")
        axes.set_title(title)
    figure.supxlabel(style.wrapped(figure, note), fontsize=8)
    return figure


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
