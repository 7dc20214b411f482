"""Matplotlib's SVG as a page has it: short, without addresses and secrets, with hover texts."""

import re
from collections.abc import Iterator, Mapping, Sequence
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from support.redact import redact

Mark = tuple[str, str | Sequence[str]]
"""CSS class of something drawn, and its hover text, or one text for each of its markers."""

# characters that may not stand in XML
CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")


def page_svg(text: str, name: str, marks: Sequence[Mark], variables: Mapping[str, str]) -> str:
    """One <svg> element of HTML, from the text of a file that Matplotlib wrote.

    Args:
        text: The file.
        name: Id of the element.
        marks: What belongs to the groups whose ids are mark-0, mark-1, ...
        variables: What takes the place of hexadecimal colours.
    """
    text = re.sub("#[0-9a-f]{6}", lambda match: variables.get(match[0], match[0]), text)
    (root,) = _tidied(ElementTree.fromstring(CONTROLS.sub("", text)), marks)
    root.attrib = {"id": name, "viewBox": root.attrib["viewBox"], "role": "img"}
    return ElementTree.tostring(root, encoding="unicode")


def _tidied(element: Element, marks: Sequence[Mark]) -> Iterator[Element]:
    """The element; its children if it only wraps them; nothing if it draws nothing.

    Groups are numbered anew in each file, so that their ids would not be unique on a page: only
    those of markers stay, which are salted hashes.
    """
    tag, name = _local(element.tag), element.get("id", "")
    children = [each for child in element for each in _tidied(child, marks)]
    attributes = {_local(key): _short(_local(key), text) for key, text in element.items()}
    for key in ("id", "clip-path", *(("style",) if tag == "image" else ())):
        attributes.pop(key, None)  # without a style, a browser smooths an image
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
    """A name without its namespace, which HTML does not have."""
    return name.rpartition("}")[2]


def _titled(children: list[Element], title: str | Sequence[str]) -> list[Element]:
    """The children with a hover text for all of them, or with one for each marker."""
    if isinstance(title, str):
        return [_title(title), *children] if title else children
    markers = [each for child in children for each in child.iter("use")]
    for marker, text in zip(markers, title, strict=True):
        marker.append(_title(text))
    return children


def _title(text: str) -> Element:
    title = Element("title")
    title.text = redact(CONTROLS.sub("", text))
    return title


def _short(key: str, value: str) -> str:
    """The value of an attribute: a hundredth of a pixel is enough, and the font is the page's."""
    if key == "style":
        # style.css has the family; older releases write "font: SIZE FAMILY"
        value = re.sub(r"font-family: [^;]*;? ?", "", value)
        value = re.sub(r"font: ([\d.]+px) [^;]*", r"font-size: \1", value)
        return re.sub("([:;]) ", r"\1", value)
    if key in ("d", "x", "y", "transform"):
        value = re.sub(r"\d+\.\d+", lambda match: f"{float(match[0]):.2f}", value)
        return re.sub(r"\s*([A-Z,z])\s*", r"\1", value) if key == "d" else value
    return value
