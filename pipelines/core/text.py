"""Numbers as people read them."""


def plain(value: float) -> str:
    """Return a number as text: `12,500`, `0.25`."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.6g}"


def size(count: float) -> str:
    """Return a number of bytes as text: `163.2 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """Return a time in seconds as text: `0.4 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, left = divmod(minutes, 60)
    return f"{hours} h {left} min" if hours else f"{minutes} min {rest} s"


def roughly(seconds: float) -> str:
    """Return a time in seconds as text that is as exact as a forecast: `8 s`, `11 min`, `2 h 5 min`."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min" if seconds < 5400 else duration(seconds)


def percent(value: float) -> str:
    """Return a share as percent: `98.5%`, with as many digits as it has, three at most after the point."""
    return f"{100 * value:.3f}".rstrip("0").rstrip(".") + "%"
