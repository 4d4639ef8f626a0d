"""Each fault of a page is found; the pages themselves are checked where their tests make them."""

import pytest

from tests.accessibility import faults

GOOD = """<!doctype html><html lang="en"><head><title>Page</title><meta name="viewport" content="width=device-width">
</head><body><nav aria-label="Pages"><a href="/">Home</a></nav><main><h1>Page</h1><h2>Part</h2>
<form><label>Name <input name="n"></label><label for="c">Comment</label><textarea id="c"></textarea>
<input type="hidden" name="t"><button>Send</button></form>
<div class="scroll" tabindex="0" role="region" aria-label="Numbers"><table>
<thead><tr><td></td><th scope="col">Number</th></tr></thead><tr><th scope="row">One</th><td>1</td></tr></table></div>
<img src="a.png" alt="A cat"><svg role="img" aria-label="A curve"><title>no title of the page</title></svg>
<a href="b" aria-hidden="true" tabindex="-1"><svg></svg></a></main></body></html>"""
BROKEN = {
    "no language": ('<html lang="en">', "<html>"),
    "no <title>": ("<title>Page</title>", ""),
    "no viewport": ('name="viewport"', 'name="other"'),
    "not one <main>": ("main>", "div>"),
    "no name: <nav": (' aria-label="Pages"', ""),
    "no name: <a": (">Home</a>", "></a>"),
    "no name: <button": (">Send</button>", "></button>"),
    "no name: <img": (' alt="A cat"', ""),
    "no name: <svg": (' aria-label="A curve"', ""),
    "not one <h1>": ("<h2>Part</h2>", "<h1>Part</h1>"),
    "skips a level": ("h2>", "h3>"),
    "no text: <h2": ("<h2>Part", "<h2>"),
    "no text: <th": ("One</th>", "</th>"),
    "no scope": (' scope="row"', ""),
    "a table without headers": ("</table>", "</table><table><tr><td>1</td></tr></table>"),
    "no label: <input": ("Name <input", "<input"),
    "no label: <textarea": ('<label for="c">Comment</label>', ""),
    "leads nowhere": ('for="c"', 'for="d"'),
    "stands 2 times": ("<h2>", '<h2 id="c">'),
    "scrolls by mouse only": (' tabindex="0"', ""),
    "changes the order of Tab": ("<button>", '<button tabindex="2">'),
    "hidden, but Tab stops there": (' tabindex="-1"', ""),
}


def test_good_page_has_no_fault():
    assert faults(GOOD) == []


@pytest.mark.parametrize("fault", BROKEN)
def test_fault_is_found(fault):
    old, new = BROKEN[fault]
    assert old in GOOD
    assert any(found.startswith(fault) or fault in found for found in faults(GOOD.replace(old, new)))
