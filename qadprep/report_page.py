"""One self-contained HTML page: no script, nothing fetched, dark on white, fit for paper."""

import base64
import html
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from qadprep.report_section import Number, Picture, Section, Tabs

# More rows make a page that browsers are slow with.
MAX_ROWS = 500
# One rule for each place in a row of tabs: every quality that a set may have, and the differences.
_MOST_TABS = 65
# `img-src data:` is all that the page may load; the rest of the policy keeps it from loading or sending anything.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_STYLE = """
:root { color-scheme: only light; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 76em; padding: 0 1em; color: #1b1b1b;
  background: #fff; }
a { color: #0b4f8a; }
h1 { font-size: 1.6em; } h2 { font-size: 1.35em; margin-top: 2.4em; border-bottom: 2px solid #888; }
h3 { font-size: 1.08em; margin: 1.9em 0 .4em; }
p { max-width: 56em; }
nav { border: 1px solid #ddd; background: #fafafa; padding: .6em 1em; }
nav ul { list-style: none; margin: 0; padding: 0; } nav > ul > li { margin: .25em 0; }
nav li li { display: inline; margin-right: 1.1em; } nav li ul { display: inline; margin-left: .8em; font-size: .93em; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .6em 0; }
caption { text-align: left; font-size: .93em; color: #444; padding-bottom: .3em; }
th, td { padding: .2em .7em; border-bottom: 1px solid #e0e0e0; vertical-align: top; overflow-wrap: break-word; }
th { text-align: left; border-bottom: 1px solid #888; }
th.n, td.n { text-align: right; font-variant-numeric: tabular-nums; }
.notice { background: #fff4d6; border: 1px solid #b8860b; padding: .6em 1em; }
pre { background: #f6f6f6; padding: .7em; overflow-x: auto; }
figure { margin: .8em 0; } figcaption { font-size: .93em; color: #444; max-width: 56em; }
figure svg { display: block; max-width: 100%; height: auto; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
svg.bar { width: 100%; height: 28px; display: block; margin-top: .6em; }
.legend span { margin-right: 1.4em; white-space: nowrap; }
.legend i { display: inline-block; width: .8em; height: .8em; margin-right: .4em; }
.tabs { border: 1px solid #ddd; margin: 1em 0; padding: .5em 1em; min-width: 0; } .tabs legend { font-weight: 600; }
.tabs label { margin: 0 1.2em 0 .2em; } .tabs > .panel { display: none; }
.hidden { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
@media print {
  body { margin: 0; max-width: none; font-size: 10pt; } nav, .tabs > input, .tabs > label { display: none; }
  .wide { overflow: visible; } img { max-width: 100%; height: auto; } .tabs > .panel { display: block; }
  figure, tr { break-inside: avoid; } h2, h3 { break-after: avoid; } thead { display: table-header-group; }
  svg.bar rect, .legend i { print-color-adjust: exact; } details::details-content { content-visibility: visible; }
}
"""


def page(title: str, notice: str, sections: Sequence[Section]) -> str:
    """The whole page.

    Args:
        title: of the page.
        notice: shown in a box on top; empty for none.
        sections: chapters and parts in their order; a chapter's parts follow it. Empty parts are left out.

    Returns:
        HTML, the same for the same arguments. It links to nothing outside of itself, and its content security policy
        lets a browser load nothing.
    """
    shown = [section for section in sections if not section.empty]
    anchors = _anchors(shown)
    parts = [
        "<!doctype html>\n<html lang='en'>\n<head>\n<meta charset='utf-8'>",
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}{_tab_rules(shown)}</style>\n</head>\n<body>",
        f"<h1>{html.escape(title)}</h1>",
    ]
    if notice:
        parts.append(f"<p class='notice'>{html.escape(notice)}</p>")
    parts.append(_navigation(shown, anchors))
    parts.append("<main>")
    parts_tag = "h3" if any(section.chapter for section in shown) else "h2"
    for section, anchor in zip(shown, anchors, strict=True):
        parts += _section(section, anchor, parts_tag)
    return "\n".join([*parts, "</main>", "</body>", "</html>", ""])


def _anchors(sections: Sequence[Section]) -> list[str]:
    taken: set[str] = set()
    names = []
    for section in sections:
        name = section.anchor or re.sub(r"[^a-z0-9]+", "-", section.title.lower()).strip("-") or "part"
        number, unique = 1, name
        while unique in taken:
            number += 1
            unique = f"{name}-{number}"
        taken.add(unique)
        names.append(unique)
    return names


def _navigation(sections: Sequence[Section], anchors: Sequence[str]) -> str:
    """A line for each chapter with its parts; parts before the first chapter, or a page without, in one line."""
    lines: list[tuple[str, list[str]]] = []
    for section, anchor in zip(sections, anchors, strict=True):
        link = f"<a href='#{anchor}'>{html.escape(section.title)}</a>"
        if section.chapter or not lines:
            lines.append((link, []) if section.chapter else ("", [link]))
        else:
            lines[-1][1].append(link)
    items = []
    for head, links in lines:
        inner = f"<ul>{' '.join(f'<li>{link}</li>' for link in links)}</ul>" if links else ""
        items.append(f"<li>{head}{inner}</li>")
    return f"<nav aria-label='Contents'><ul>{''.join(items)}</ul></nav>" if items else ""


def _section(section: Section, anchor: str, parts_tag: str) -> Iterator[str]:
    tag, mark = ("h2", " class='chapter'") if section.chapter else (parts_tag, "")
    yield f"<{tag} id='{anchor}'{mark}>{html.escape(section.title)}</{tag}>"
    if section.text:
        # Commands stand in backticks, as in every text of the command line.
        words = re.sub("`([^`]+)`", r"<code>\1</code>", html.escape(section.text))
        yield f"<p>{words}</p>"
    for number, picture in enumerate(section.pictures):
        if isinstance(picture, Tabs):
            yield _tabs(picture, f"{anchor}-tabs-{number}")
        else:
            yield _figure(picture)
    if section.html:
        yield section.html
    if section.rows:
        yield _table(section)


def _table(section: Section) -> str:
    rows = section.rows[:MAX_ROWS]
    numeric = [
        all(isinstance(row[place], int | float | Number) for row in rows if place < len(row))
        for place in range(len(section.columns))
    ]
    caption = section.caption or section.title
    # A screen reader says the caption; who sees the heading right above needs no second one.
    quiet = " class='hidden'" if caption == section.title and not section.folded else ""
    marks = (" class='n'" if right else "" for right in numeric)
    head = "".join(
        f"<th scope='col'{mark}>{html.escape(str(name))}</th>"
        for name, mark in zip(section.columns, marks, strict=True)
    )
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    # In a box of its own a wide table can be scrolled, also with the keyboard, without moving the page.
    table = (
        f"<div class='wide' tabindex='0'><table><caption{quiet}>{html.escape(caption)}</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
    if len(section.rows) > MAX_ROWS:
        table += f"<p>The first {MAX_ROWS} of {len(section.rows):,} rows.</p>"
    if section.folded:
        return f"<details><summary>{html.escape(caption)}</summary>{table}</details>"
    return table


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return f"<td>{'yes' if value else 'no'}</td>"
    if isinstance(value, float):
        return f"<td class='n'>{'-' if math.isnan(value) else f'{value:.3f}'}</td>"
    if isinstance(value, int):
        return f"<td class='n'>{value if abs(value) < 10_000 else f'{value:,}'}</td>"
    if isinstance(value, Number):
        return f"<td class='n'>{html.escape(value)}</td>"
    # Long paths may be broken at their folders.
    return f"<td>{html.escape(str(value)).replace('/', '/<wbr>')}</td>"


def _figure(picture: Path | Picture) -> str:
    if isinstance(picture, Path):
        picture = Picture(picture.read_bytes(), picture.stem)
    data = base64.b64encode(picture.png).decode()
    # Width and height of a PNG stand at a fixed place; with them the page does not jump while it is laid out.
    width, height = (int.from_bytes(picture.png[start : start + 4], "big") for start in (16, 20))
    caption = f"<figcaption>{html.escape(picture.caption)}</figcaption>" if picture.caption else ""
    return (
        f"<figure><div class='wide' tabindex='0'><img alt='{html.escape(picture.alt)}' width='{width}' "
        f"height='{height}' src='data:image/png;base64,{data}'></div>{caption}</figure>"
    )


def _tabs(tabs: Tabs, name: str) -> str:
    """Radio buttons, their labels, then the panels: the rules of the style show the chosen one's panel."""
    if len(tabs.pictures) > _MOST_TABS:
        raise ValueError(f"{len(tabs.pictures)} tabs in one place, at most {_MOST_TABS}")
    buttons, panels = [], []
    for number, (label, picture) in enumerate(tabs.pictures):
        chosen = "" if number else " checked"
        buttons.append(
            f"<input type='radio' name='{name}' id='{name}-{number}'{chosen}>"
            f"<label for='{name}-{number}'>{html.escape(label)}</label>"
        )
        panels.append(f"<div class='panel'>{_figure(picture)}</div>")
    return (
        f"<fieldset class='tabs'><legend>{html.escape(tabs.title)}</legend>{''.join(buttons)}{''.join(panels)}"
        "</fieldset>"
    )


def _tab_rules(sections: Sequence[Section]) -> str:
    most = max((len(p.pictures) for s in sections for p in s.pictures if isinstance(p, Tabs)), default=0)
    rules = [f".tabs > input:nth-of-type({n}):checked ~ .panel:nth-of-type({n})" for n in range(1, most + 1)]
    return f"{', '.join(rules)} {{ display: block; }}\n" if rules else ""
