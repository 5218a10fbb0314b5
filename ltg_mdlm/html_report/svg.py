"""matplotlib's figures as SVG that belongs to the page: its text, its colours, its accessible names."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from ltg_mdlm.plots.figure import DISTINCT, MUTED, ORDERED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_HREF = f"{{{_XLINK}}}href"

VARIABLES = {
    "#000000": "ink",
    "#333333": "ink",
    MUTED: "muted",
    "#999999": "axis",
    "#e6e6e6": "grid",
    **{colour.lower(): f"series-{i}" for i, colour in enumerate(DISTINCT) if i},
    **{colour.lower(): f"ordered-{i}" for i, colour in enumerate(ORDERED)},
}
"""The CSS variable that stands for each colour of our pictures; the page gives it a value for light and for dark."""

_REMOVED = {f"{{{_SVG}}}{tag}" for tag in ("metadata", "title", "style")}
"""A style sheet in a figure would hold for the whole page, which has its own."""
_COLOUR = re.compile(r"#[0-9a-f]{6}\b", re.IGNORECASE)
_NUMBER = re.compile(r"-?\d+\.\d{2,}")
_FONT = re.compile(r"(font:[^;]*?\d+(?:\.\d+)?px)[^;]*")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")


def inline_svg(figure: Figure, name: str, title: str, description: str) -> str:
    """An `<svg>` element; `name` is unique on the page and made of letters, digits and hyphens."""
    root = ElementTree.fromstring(_rendered(figure, name))
    for parent, child in list(_children(root)):
        if child.tag in _REMOVED:
            parent.remove(child)
    _own_ids(root, name)
    for element in root.iter():
        _adapt(element)
    _describe(root, name, title, description)
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    return re.sub(r' xmlns(:\w+)?="[^"]*"', "", ElementTree.tostring(root, encoding="unicode"))


def _rendered(figure: Figure, name: str) -> str:
    import matplotlib as mpl

    file = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return file.getvalue()


def _children(root: ElementTree.Element) -> Iterator[tuple[ElementTree.Element, ElementTree.Element]]:
    return ((parent, child) for parent in root.iter() for child in parent)


def _own_ids(root: ElementTree.Element, name: str) -> None:
    """Ids that are referred to begin with the figure's name, since all figures share one page; others go."""
    used = {reference for element in root.iter() for reference in _references(element)}
    for element in root.iter():
        if (own := element.attrib.pop("id", None)) in used:
            element.set("id", f"{name}-{own}")
        for key, value in element.attrib.items():
            if key == _HREF and value.startswith("#"):
                element.set(key, f"#{name}-{value[1:]}")
            else:
                element.set(key, _REFERENCE.sub(rf"url(#{name}-\1)", value))


def _references(element: ElementTree.Element) -> Iterator[str]:
    for key, value in element.attrib.items():
        if key == _HREF:
            yield value.removeprefix("#")
        yield from _REFERENCE.findall(value)


def _adapt(element: ElementTree.Element) -> None:
    """Colours by variable, the page's font, no more decimals than can be seen."""
    style = element.get("style")
    if style is not None:
        element.set("style", _FONT.sub(r"\1 var(--sans)", _COLOUR.sub(_variable, style)))
    for key in ("d", "x", "y", "transform"):
        if key in element.attrib:
            element.set(key, _NUMBER.sub(lambda number: f"{float(number[0]):.1f}", element.attrib[key]))


def _variable(colour: re.Match[str]) -> str:
    name = VARIABLES.get(colour[0].lower())
    return f"var(--{name})" if name else colour[0]


def _describe(root: ElementTree.Element, name: str, title: str, description: str) -> None:
    for place, (kind, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(f"{{{_SVG}}}{kind}", {"id": f"{name}-{kind}"})
        element.text = text
        root.insert(place, element)
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title {name}-desc")
