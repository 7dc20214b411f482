"""Conversion of Matplotlib's SVG for a page: short, with hover texts, no addresses or secrets."""

import re
from collections.abc import Iterator, Mapping, Sequence
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from support.redact import redact

Mark = tuple[str, str | Sequence[str]]
"""CSS class of an artist, and its hover text or one text for each of its markers."""

# characters that XML does not allow
CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")


def page_svg(text: str, name: str, marks: Sequence[Mark], variables: Mapping[str, str]) -> str:
    """Convert the text of an SVG file of Matplotlib to an <svg> element of HTML with id `name`.

    The groups with the ids mark-0, mark-1, ... get the marks. CSS variables replace the colours.
    """
    text = re.sub("#[0-9a-f]{6}", lambda match: variables.get(match[0], match[0]), text)
    (root,) = _tidied(ElementTree.fromstring(CONTROLS.sub("", text)), marks)
    root.attrib = {"id": name, "viewBox": root.attrib["viewBox"], "role": "img"}
    return ElementTree.tostring(root, encoding="unicode")


def _tidied(element: Element, marks: Sequence[Mark]) -> Iterator[Element]:
    """Yield the element, its children if it only wraps them, or nothing if it draws nothing.

    Ids of groups are removed, because each file numbers them from 1 and they would not be unique on
    a page. Ids of markers are salted hashes and stay.
    """
    tag, name = _local(element.tag), element.get("id", "")
    children = [tidy for child in element for tidy in _tidied(child, marks)]
    attributes = {_local(key): _short(_local(key), text) for key, text in element.items()}
    for key in ("id", "clip-path", *(("style",) if tag == "image" else ())):
        attributes.pop(key, None)  # without its style, a browser smooths an image
    if tag == "path" and name:
        attributes["id"] = name
    elif name.startswith("mark-"):
        attributes["class"], title = marks[int(name.removeprefix("mark-"))]
        children = _titled(children, title)
    if tag == "g" and not attributes:
        yield from children
    elif tag not in ("style", "clipPath") and (children or tag not in ("defs", "g")):
        tidy = Element(tag, attributes)
        tidy.text = redact(element.text.strip()) if element.text else None
        tidy.extend(children)
        yield tidy


def _local(name: str) -> str:
    """A name without its namespace, which HTML does not use."""
    return name.rpartition("}")[2]


def _titled(children: list[Element], title: str | Sequence[str]) -> list[Element]:
    """Add one hover text for all children, or one for each marker."""
    if isinstance(title, str):
        return [_title(title), *children] if title else children
    markers = [marker for child in children for marker in child.iter("use")]
    for marker, text in zip(markers, title, strict=True):
        marker.append(_title(text))
    return children


def _title(text: str) -> Element:
    title = Element("title")
    title.text = redact(CONTROLS.sub("", text))
    return title


def _short(key: str, value: str) -> str:
    """Round an attribute to hundredths of a pixel, and leave the font family to the page."""
    if key == "style":
        # style.css sets the family; older Matplotlib releases write "font: SIZE FAMILY"
        value = re.sub(r"font-family: [^;]*;? ?", "", value)
        value = re.sub(r"font: ([\d.]+px) [^;]*", r"font-size: \1", value)
        return re.sub("([:;]) ", r"\1", value)
    if key in ("d", "x", "y", "transform"):
        value = re.sub(r"\d+\.\d+", lambda match: f"{float(match[0]):.2f}", value)
        return re.sub(r"\s*([A-Z,z])\s*", r"\1", value) if key == "d" else value
    return value
