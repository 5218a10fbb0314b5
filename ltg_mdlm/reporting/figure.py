"""Pictures as lists of panels in one style.

Colours can be distinguished with any colour vision (the set of Okabe and Ito; viridis for ordered series), and are
darkened to a contrast of at least 3 to white. Ordered series also differ in lightness, so they can be distinguished in
greyscale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltg_mdlm.core.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes


DISTINCT = ("#000000", "#B37400", "#0072B2", "#C24F00", "#00805D", "#A8487F")
"""Colours of series without an order."""

ORDERED = ("#440154", "#3B528B", "#21918C", "#3F9E48", "#AA8C00")
"""viridis from dark to light."""

MUTED = "#666666"
"""Colour of annotations."""

STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelcolor": "#333333",
    "axes.edgecolor": "#999999",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.6,
    "xtick.color": "#666666",
    "ytick.color": "#666666",
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
"""matplotlib's rcParams."""


@dataclass(frozen=True)
class Panel:
    """One subplot: its title, and the function that draws it."""

    title: str
    draw: Callable[[Axes], None]
    caption: str = ""
    """What it shows, for the HTML report."""


def draw_panel(panel: Panel, axes: Axes) -> None:
    """Draw a panel, with plain powers of ten on logarithmic axes.

    matplotlib's own labels are mathematical text, and its minor ticks, eight per decade, are never labelled here.
    Together they take half of the time of a picture.
    """
    from matplotlib.ticker import LogFormatter

    panel.draw(axes)
    axes.minorticks_off()
    for axis in (axes.xaxis, axes.yaxis):
        if isinstance(axis.get_major_formatter(), LogFormatter):
            axis.set_major_formatter(power_of_ten)


def power_of_ten(value: float, _: float = 0) -> str:
    """For example 0.01, 1, 100, and 10⁻⁴; other values as they are."""
    exponent = math.log10(value)
    if abs(exponent) <= 2 or not exponent.is_integer():
        return f"{value:g}"
    return "10" + f"{exponent:.0f}".translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def save_panels(panels: Sequence[Panel], path: Path, *, title: str, dpi: int = 150) -> None:
    """Draw the panels, up to three in one row or more in two rows, and write the picture.

    The suffix of the file selects the format. Raises `UserError` if matplotlib is missing or the file cannot be
    written.
    """
    check_writable(path)
    import matplotlib as mpl
    from matplotlib.figure import Figure

    columns = len(panels) if len(panels) <= 3 else math.ceil(len(panels) / 2)
    lines = math.ceil(len(panels) / columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.2 * columns, 3.5 * lines + 0.4))
        figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.08)
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        for place, panel in enumerate(panels, start=1):
            axes = figure.add_subplot(lines, columns, place)
            axes.set_title(panel.title)
            draw_panel(panel, axes)
        try:
            figure.savefig(path, dpi=dpi)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror or error}") from None


def require_matplotlib() -> None:
    """Raise `UserError` with the command that installs matplotlib if it is missing."""
    try:
        import matplotlib.backend_bases  # noqa: F401
    except ImportError:
        raise UserError('pictures need matplotlib\n  pip install "ltg-mdlm[plots]"') from None


def check_writable(path: Path) -> None:
    """Raise `UserError` if no picture can be written: matplotlib is missing, unknown format, missing folder."""
    require_matplotlib()
    from matplotlib.backend_bases import FigureCanvasBase

    known = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix.removeprefix(".").lower() not in known:
        raise UserError(f"{path}: no picture format ends in {path.suffix!r}\n  known: {', '.join(known)}")
    if not path.resolve().parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.resolve().parent}")
