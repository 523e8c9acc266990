"""HTML that stands alone: text is escaped unless it is markup already, figures are data, the style is in the page."""

import base64
import html
import io
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib

from analysis.drawing import STYLE, Drawing

CSS = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #5b636c; --line: #d5dae0; --page: #fff; --tint: #f4f6f8;
  --link: #0b57a4; --warn: #8a4b00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ea; --soft: #a2abb5; --line: #3a424b; --page: #14181c;
  --tint: #1d2329; --link: #83b9f2; --warn: #f0b35c; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 62rem; padding: 1.2rem 1.2rem 4rem; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .4rem 0 .8rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; padding-top: .5rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.02rem; margin: 1.5rem 0 .4rem; }
p, ul { margin: .5rem 0; max-width: 46rem; }
ul { padding-left: 1.2rem; }
a { color: var(--link); }
.lead { font-size: 1.1rem; }
.caveats { border-left: 3px solid var(--warn); padding: .1rem 0 .1rem .9rem; margin: 1rem 0; }
.soft, figcaption, .none { color: var(--soft); }
.missing { color: var(--warn); }
nav { margin: 1.2rem 0; columns: 3 10rem; font-size: .93rem; }
nav a { display: block; padding: .12rem 0; }
figure { margin: 1rem 0; }
.scroll { overflow-x: auto; }
figure img { display: block; width: 100%; min-width: 38rem; height: auto; background: #fff; }
figcaption { font-size: .9rem; margin-top: .4rem; max-width: 46rem; }
table { border-collapse: collapse; font-size: .88rem; line-height: 1.35; margin: .6rem 0; }
th, td { padding: .28rem .7rem .28rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); vertical-align: bottom; }
tbody th { color: inherit; }
td { white-space: nowrap; }
th { overflow-wrap: normal; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
table.wide { width: 100%; }
table.wide td { white-space: normal; }
table.wide td:first-child { width: 19%; }
table.wide td:last-child { width: 27%; color: var(--soft); }
code, pre { font: .85rem/1.4 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre { overflow-x: auto; background: var(--tint); padding: .7rem; }
sup { line-height: 0; }
details { margin: .7rem 0; }
summary { cursor: pointer; color: var(--link); }
@media (max-width: 40rem) { body { padding: .8rem .8rem 3rem; } th, td { padding-right: .55rem; }
  table.wide thead { display: none; } table.wide tr { display: block; padding: .4rem 0;
    border-bottom: 1px solid var(--line); }
  table.wide td, table.wide td:first-child, table.wide td:last-child { display: block; width: auto; border: 0; }
  table.wide td:first-child { font-weight: 600; } }
@media print { :root { color-scheme: light; --ink: #000; --soft: #444; --line: #bbb; --page: #fff; --tint: #fff;
  --link: #000; --warn: #000; }
  body { max-width: none; padding: 0; font-size: 9.5pt; } nav { display: none; }
  h1, h2, h3 { break-after: avoid; } figure, tr { break-inside: avoid; } thead { display: table-header-group; }
  .scroll { overflow: visible; } figure img { min-width: 0; } table { font-size: 7.5pt; } a { text-decoration: none; }
  th, td { padding-right: .4rem; } pre { white-space: pre-wrap; overflow-wrap: anywhere; } }
"""
VOID = ("img", "meta")


class Html(str):
    """Text that is markup, and is not escaped again."""


def tag(name: str, /, *inside: Any, **attributes: Any) -> Html:
    """One element. What is inside is escaped unless it is markup; ``class_`` is class, None leaves one out.

    >>> tag("td", "a < b", class_="n")
    '<td class="n">a &lt; b</td>'
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{given}>" + ("" if name in VOID else f"{join(*inside)}</{name}>"))


def join(*parts: Any) -> Html:
    """Parts one after another, escaped unless they are markup."""
    return Html("".join(part if isinstance(part, Html) else html.escape(str(part)) for part in parts))


def items(lines: Iterable[Any]) -> Html:
    """A list; nothing where there are no lines."""
    found = [tag("li", line) for line in lines]
    return tag("ul", *found) if found else Html()


def table(header: Sequence[Any], rows: Iterable[Sequence[Any]], wide: bool = False) -> Html:
    """A table that scrolls sideways where it must; columns of numbers are aligned to the right.

    ``wide``: of sentences, which wrap, and on a narrow screen stand below one another.
    """
    body = [[cell if isinstance(cell, Html) else str(cell) for cell in row] for row in rows]
    numeric = [all(re.match(r"[-+±\d]|$", row[i]) for row in body) for i in range(len(header))]
    classes = ["n" if is_number else None for is_number in numeric]
    head = tag("tr", *(tag("th", cell, class_=one, scope="col") for cell, one in zip(header, classes, strict=True)))
    lines = [tag("tr", *(tag("td", cell, class_=one) for cell, one in zip(row, classes, strict=True))) for row in body]
    whole = tag("table", tag("thead", head), tag("tbody", *lines), class_="wide" if wide else None)
    return tag("div", whole, class_="scroll", tabindex="0")


def folded(summary: str, *inside: Any) -> Html:
    """What is read on demand."""
    return tag("details", tag("summary", summary), *inside)


def figure(drawing: Drawing, alt: str, caption: Any) -> Html:
    """A figure as SVG, or as PNG (200 dpi) where that is smaller; the same figure gives the same bytes."""
    images = {}
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": "sd3_jax", "svg.fonttype": "path"}):
        for kind, options in (("svg+xml", {"metadata": {"Date": None}}), ("png", {"dpi": 200})):
            buffer = io.BytesIO()
            drawing.figure.savefig(buffer, format=kind.partition("+")[0], **options)
            images[kind] = buffer.getvalue()
    kind = min(images, key=lambda key: len(images[key]))
    width, height = (round(96 * inches) for inches in drawing.figure.get_size_inches())
    image = tag("img", src=data_uri(f"image/{kind}", images[kind]), alt=alt, width=width, height=height)
    return tag("figure", tag("div", image, class_="scroll", tabindex="0"), tag("figcaption", caption))


def data_uri(kind: str, content: bytes) -> str:
    """Content as an address of its own."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def formula(text: str) -> Html:
    """A formula of ours with exponents raised and Greek letters.

    >>> formula("B / D^beta, N* ~ C^-a")
    'B / D<sup>β</sup>, N* ~ C<sup>-a</sup>'
    """
    raised = re.sub(r"\^(-?\w+)", r"<sup>\1</sup>", html.escape(text))
    return Html(raised.replace("alpha", "α").replace("beta", "β"))


def number(value: float | None, digits: int = 4) -> str:
    """A number for a table; empty for none.

    >>> number(1182864), number(475321.6), number(2929301913600.0), number(0.33921), number(float("nan"))
    ('1,182,864', '475,300', '2.929e12', '0.3392', '')
    """
    if value is None or value != value:
        return ""
    if float(value).is_integer() and abs(value) < 1e7:
        return f"{int(value):,}"
    if 1000 <= abs(value) < 1e7:
        return f"{float(f'{value:.{digits}g}'):,.0f}"
    return f"{value:.{digits}g}".replace("e+", "e")


def span(ends: Sequence[float] | None, digits: int = 4) -> str:
    """An interval; empty for none.

    >>> span((0.1, 0.25)), span(None)
    ('0.1 to 0.25', '')
    """
    return f"{number(ends[0], digits)} to {number(ends[1], digits)}" if ends and math.isfinite(ends[0]) else ""


def document(title: str, *body: Any) -> str:
    """The whole page."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Html(CSS)),
    )
    return "<!DOCTYPE html>\n" + tag("html", head, tag("body", tag("main", *body)), lang="en") + "\n"
