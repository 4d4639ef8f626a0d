"""What a screen reader and a keyboard need of a page, checked in its HTML: `faults` lists what is missing.

Contrast, focus and sizes need a browser: tests/system/test_dashboard.py.
"""

from collections import Counter
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
FIELDS = ("input", "select", "textarea")
REFERENCES = ("for", "aria-labelledby", "aria-describedby")


@dataclass
class Element:
    """An element of the page: its text is that of all it holds, without what is hidden from screen readers."""

    tag: str
    attributes: dict[str, str]
    parents: tuple["Element", ...]
    text: str = ""
    children: list["Element"] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Its accessible name, as far as text and labels give it."""
        images = " ".join(child.attributes.get("alt", "") for child in self.inside("img"))
        return (self.attributes.get("aria-label") or self.text or images).strip()

    @property
    def is_hidden(self) -> bool:
        """Whether screen readers leave it out."""
        return any(one.attributes.get("aria-hidden") == "true" for one in (self, *self.parents))

    def inside(self, *tags: str) -> list["Element"]:
        """The elements that it holds, of these tags."""
        found = [child for child in self.children if child.tag in tags]
        return found + [one for child in self.children for one in child.inside(*tags)]

    def is_in(self, *tags: str) -> bool:
        """Whether an element of these tags holds it."""
        return any(parent.tag in tags for parent in self.parents)

    def __str__(self) -> str:
        return f"<{self.tag}{''.join(f' {name}={value!r}' for name, value in self.attributes.items())}>"


class Page(HTMLParser):
    """The tree of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.root = Element("", {}, ())
        self._open = [self.root]
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        element = Element(tag, {name: value or "" for name, value in attrs}, tuple(self._open))
        self._open[-1].children.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag):
        while len(self._open) > 1 and self._open.pop().tag != tag:
            pass

    def handle_data(self, data):
        if not self._open[-1].is_hidden:
            for element in self._open:
                element.text += data


def faults(html: str) -> list[str]:
    """What keeps people with a screen reader or a keyboard from a page; empty for a good one."""
    root = Page(html).root
    everything = root.inside(*{element.tag for element in _walk(root)})
    return [
        *_document(root),
        *_headings(root),
        *_tables(root),
        *_named(root),
        *_references(everything),
        *(f"scrolls by mouse only: {one}" for one in everything if _is_scrolled(one) and not _is_reached(one)),
        *(f"changes the order of Tab: {one}" for one in everything if one.attributes.get("tabindex", "0") > "0"),
    ]


def _walk(element: Element):
    for child in element.children:
        yield child
        yield from _walk(child)


def _document(root: Element) -> list[str]:
    lacking = []
    if not any(html.attributes.get("lang") for html in root.inside("html")):
        lacking.append("no language: <html lang>")
    if not any(title.text.strip() and title.is_in("head") for title in root.inside("title")):
        lacking.append("no <title>")
    if not any(meta.attributes.get("name") == "viewport" for meta in root.inside("meta")):
        lacking.append("no viewport: text is tiny on a phone")
    if len(root.inside("main")) != 1:
        lacking.append("not one <main>")
    navigations = root.inside("nav")
    return lacking + [f"no name: {one}" for one in navigations if not one.attributes.get("aria-label")]


def _headings(root: Element) -> list[str]:
    headings = [element for element in _walk(root) if element.tag in HEADINGS]
    lacking = [f"no text: {one}" for one in headings if not one.name]
    if sum(one.tag == "h1" for one in headings) != 1:
        lacking.append("not one <h1>")
    level = 0
    for one in headings:
        if int(one.tag[1]) > level + 1:
            lacking.append(f"skips a level of headings: {one} {one.name}")
        level = int(one.tag[1])
    return lacking


def _tables(root: Element) -> list[str]:
    lacking = [f"a table without headers: {one}" for one in root.inside("table") if not one.inside("th")]
    for head in root.inside("th"):
        if head.attributes.get("scope") not in {"col", "row"}:
            lacking.append(f"no scope: {head} {head.name}")
        if not head.name:
            lacking.append(f"no text: {head}")
    return lacking


def _named(root: Element) -> list[str]:
    labelled = {label.attributes.get("for") for label in root.inside("label") if label.text.strip()}
    lacking = []
    for one in root.inside(*FIELDS):
        inner = any(parent.tag == "label" and parent.text.strip() for parent in one.parents)
        is_labelled = inner or one.attributes.get("id", "") in labelled or one.attributes.get("aria-label")
        if one.attributes.get("type") != "hidden" and not is_labelled:
            lacking.append(f"no label: {one}")
    lacking += [f"no name: {one}" for one in root.inside("a", "button") if not one.is_hidden and not one.name]
    lacking += [f"no name: {one}" for one in root.inside("img") if "alt" not in one.attributes]
    for one in root.inside("svg"):
        is_image = one.attributes.get("role") == "img" and one.attributes.get("aria-label", "").strip()
        if not (one.is_hidden or is_image):
            lacking.append(f"no name: {one}")
    hidden = [one for one in root.inside("a", "button", *FIELDS) if one.is_hidden]
    return lacking + [f"hidden, but Tab stops there: {one}" for one in hidden if one.attributes.get("tabindex") != "-1"]


def _references(everything: list[Element]) -> list[str]:
    ids = Counter(one.attributes["id"] for one in everything if "id" in one.attributes)
    wanted = [(one, one.attributes[key]) for one in everything for key in REFERENCES if key in one.attributes]
    return [f"id {name!r} stands {number} times" for name, number in ids.items() if number > 1] + [
        f"leads nowhere: {one}" for one, target in wanted if target not in ids
    ]


def _is_scrolled(element: Element) -> bool:
    return "scroll" in element.attributes.get("class", "").split()


def _is_reached(element: Element) -> bool:
    attributes = element.attributes
    return attributes.get("tabindex") == "0" and bool(attributes.get("role")) and bool(attributes.get("aria-label"))
