"""Numbers as the texts of charts."""


def short(value: float, *_: object) -> str:
    """Format a number, also as a tick formatter of Matplotlib: 0.25, 250, 12.5k, 1.2M."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.5g}{unit}"
    return f"{value:.5g}"


def percentage(value: float, *_: object) -> str:
    """Format a share, also as a tick formatter of Matplotlib: 12.5%."""
    return f"{100 * value:.5g}%"


def exact(x: float) -> str:
    """A place on the horizontal axis: steps to the last digit."""
    return f"{x:,.0f}" if float(x).is_integer() else f"{x:,.5g}"
