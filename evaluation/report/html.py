"""Building blocks of a self-contained page: escaped elements, and the frame with styles and script inside."""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

HERE = Path(__file__).parent
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data: file: 'self'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
<a class="skip" href="#main">Skip to the results</a>
<main id="main">
{body}
</main>
<footer><p>{footer}</p></footer>
<script>
{script}
</script>
</body>
</html>
"""


class Html(str):
    """Markup that is safe as it is; every other text is escaped where it is put into an element."""


def text(value: object) -> Html:
    """Escape a text, unless it is markup already."""
    return value if isinstance(value, Html) else Html(escape(str(value), quote=True))


def join(parts: Iterable[object], between: str = "") -> Html:
    """Put markup or texts one after another."""
    return Html(between.join(text(part) for part in parts))


def tag(name: str, *children: object, **attributes: object) -> Html:
    """Make an element. `class_` is class, `data_x` is data-x; True is a bare attribute, None and False leave it out."""
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        words.append(key if value is True else f'{key}="{text(value)}"')
    return Html(f"<{' '.join(words)}>{join(children)}</{name}>")


def void(name: str, **attributes: object) -> Html:
    """Make an element without content (img, input, br)."""
    return Html(tag(name, **attributes).removesuffix(f"</{name}>"))


def table(header: Sequence[object], rows: Iterable[Sequence[object]], caption: str = "", classes: str = "") -> Html:
    """Make a table whose first column holds row headings; wide ones scroll."""
    head = tag("tr", *(tag("th", cell, scope="col") for cell in header))
    body = (
        tag("tr", tag("th", row[0], scope="row"), *(cell if is_cell(cell) else tag("td", cell) for cell in row[1:]))
        for row in rows
    )
    label = [tag("caption", caption)] if caption else []
    inner = tag("table", *label, tag("thead", head), tag("tbody", *body), class_=classes or None)
    return tag("div", inner, class_="scroll", tabindex=0, role="region", aria_label=caption or "table")


def is_cell(value: object) -> bool:
    """Tell whether a value is a finished table cell."""
    return isinstance(value, Html) and value.startswith("<td")


def section(title: str, *children: object, note: object = "", id_: str = "") -> Html:
    """Make a titled part of the page."""
    lead = [tag("p", note, class_="note")] if note else []
    return tag("section", tag("h2", title), *lead, *children, id=id_ or None)


def page(title: str, body: Iterable[object], footer: str) -> str:
    """Put the page together; style and script come from the files beside this one."""
    style, script = ((HERE / name).read_text() for name in ("style.css", "viewer.js"))
    return PAGE.format(title=text(title), style=style, script=script, body=join(body, "\n"), footer=text(footer))
