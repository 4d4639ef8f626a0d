"""The text of HTML as a browser's ``textContent`` has it, with the XPath of each of its text nodes.

Label Studio addresses a span of HyperText by the XPaths of its two text nodes, below the body, such as
``/p[2]/b[1]/text()[1]``, and offsets in them; newer versions add offsets in the whole text.
"""

from collections import Counter
from html.parser import HTMLParser

import msgspec

# Text content of these elements is not shown.
_HIDDEN = frozenset({"script", "style", "head", "template"})
_WITHOUT_END = frozenset(
    ["area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track", "wbr"]
)  # elements without content
# Elements that a browser puts around the content, which paths of Label Studio leave out.
_AROUND = frozenset({"html", "body"})


class HyperText(msgspec.Struct, frozen=True):
    """The text of an HTML page.

    Attributes:
        text: Its text.
        nodes: XPath of a text node -> the position of its first character in ``text``.
    """

    text: str
    nodes: dict[str, int]

    def position(self, path: object, offset: object) -> int | None:
        """Return the position in ``text`` of a character of a text node; None if there is no such node."""
        if not isinstance(path, str) or type(offset) is not int:
            return None
        first = self.nodes.get(path if path.startswith("/") else f"/{path}")
        return None if first is None else first + offset


def parse_hypertext(html: str) -> HyperText:
    """Read the text of HTML, as far as its tags are closed as a browser closes them."""
    parser = _Parser()
    parser.feed(html.replace("\r\n", "\n").replace("\r", "\n"))  # as a browser, before it counts
    parser.close()
    return HyperText("".join(parser.parts), parser.nodes)


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.nodes: dict[str, int] = {}
        self._length = 0
        # The open elements: tag, path, and the numbers of the children by tag; "" counts text nodes.
        self._open: list[tuple[str, str, Counter[str]]] = [("", "", Counter())]
        self._hidden = 0
        self._in_text = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del attrs
        self._in_text = False
        if tag in _AROUND:
            return
        if tag == "p" and self._open[-1][0] == "p":  # a paragraph ends where the next one begins
            self._open.pop()
        _, path, children = self._open[-1]
        children[tag] += 1
        if tag in _WITHOUT_END:
            return
        self._hidden += tag in _HIDDEN
        self._open.append((tag, f"{path}/{tag}[{children[tag]}]", Counter()))

    def handle_endtag(self, tag: str) -> None:
        self._in_text = False
        if tag not in (name for name, _, _ in self._open[1:]):
            return
        while (closed := self._open.pop()[0]) != tag:
            self._hidden -= closed in _HIDDEN
        self._hidden -= tag in _HIDDEN

    def handle_data(self, data: str) -> None:
        if self._hidden:
            return
        _, path, children = self._open[-1]
        if not self._in_text:
            children[""] += 1
            self.nodes[f"{path}/text()[{children['']}]"] = self._length
            self._in_text = True
        self.parts.append(data)
        self._length += len(data)
