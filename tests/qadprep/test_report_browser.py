"""The report's page as a browser shows it: whole, without the network, pixel for pixel."""

import io
import re
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from helpers.browser import NO_NETWORK, ask, run
from helpers.sets import made_packs, made_shards
from PIL import Image

from qadprep.report import Section, write_report
from qadprep.shardset import ShardSet
from qadprep.sheets import choose_rows

WIDTH_PX = 1250


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on two groups at 96 px."""
    folder = tmp_path_factory.mktemp("report")
    packs = made_packs(folder / "faces", {"000": "train", "001": "test"}, frames=2, size_px=96)
    shards = made_shards(folder / "shards", packs)
    extra = [Section("Folded", "", ("n",), [(1,), (2,)], folded=True)]
    write_report(shards, folder / "out", title="A & B", notice="made for a test", extra=extra, sample=6)
    return folder / "out" / "report.html"


class Outline(HTMLParser):
    """Headings, captions and pictures of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: dict[str, list[str]] = {}
        self.counts: dict[str, int] = {}
        self.addresses: list[str] = []
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.addresses += [value for name, value in attributes if name in ("src", "href", "xlink:href", "srcset")]
        if tag in ("h1", "h2", "h3", "caption", "title", "legend"):
            self._open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        if self._open and self._open[-1] == tag:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts[self._open[-1]][-1] += data


def test_the_browser_builds_the_whole_page(report: Path, tmp_path: Path) -> None:
    outline = Outline(run(report, tmp_path / "profile", "--dump-dom", NO_NETWORK))
    assert outline.texts["h1"] == ["A & B"] == outline.texts["title"][:1]
    assert outline.texts["h2"] == ["The set", "Pictures", "In addition", "Distributions"]
    assert {"Tuples per split, method, label and quality", "PSNR against raw", "Yaw"} <= set(outline.texts["h3"])
    assert outline.counts["table"] == len(outline.texts["caption"]) == len(set(outline.texts["caption"])) > 8
    assert all(outline.texts["caption"])
    assert outline.counts["img"] == 2 + 2 * 4 and outline.counts["fieldset"] == 2
    assert [text[:10] for text in outline.texts["legend"]] == ["Split trai", "Split test"]
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in outline.addresses)


def test_every_picture_is_loaded_and_nothing_else_is_asked_for(report: Path, tmp_path: Path) -> None:
    expression = (
        "{images: [...document.images].map(i => "
        "[i.complete, i.naturalWidth, i.naturalHeight, i.width, i.height, i.alt]),"
        " asked: performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith('data:'))}"
    )
    found = ask(report, expression, tmp_path / "profile")
    assert found["asked"] == []
    sheets = [Image.open(report.parent / f"tuples-{split}.png").size for split in ("train", "test")]
    assert len(found["images"]) == 10
    for complete, width, height, shown_width, shown_height, alt in found["images"]:
        assert complete and width > 100 and height > 100 and alt
        # Hidden tabs have their size from the attributes; nothing is scaled, as that would blur the traces.
        assert (shown_width, shown_height) == (width, height)
    assert [tuple(image[1:3]) for image in found["images"][:2]] == sheets


@pytest.fixture
def server() -> Iterator[tuple[str, list[str]]]:
    """A web server: its address, and the paths that were asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(404)
            self.end_headers()

        def log_message(self, *words: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", asked
        running.shutdown()
        thread.join()


def test_the_policy_keeps_strange_content_from_asking(
    report: Path, server: tuple[str, list[str]], tmp_path: Path
) -> None:
    address, asked = server
    strange = (
        f"<img src='{address}/picture.png'><link rel='stylesheet' href='{address}/style.css'>"
        f"<style>body {{ background: url({address}/paper.png) }}</style><iframe src='{address}/frame'></iframe>"
        f"<script src='{address}/code.js'></script><script>document.title = 'changed';</script>"
    )
    page = tmp_path / "strange.html"
    page.write_text(report.read_text().replace("</main>", f"{strange}</main>"))
    dom = run(page, tmp_path / "profile", "--dump-dom", "--virtual-time-budget=2000")
    assert asked == [] and "<title>A &amp; B</title>" in dom
    # Without the policy the same content does ask: the test would see it.
    page.write_text(re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text()))
    dom = run(page, tmp_path / "profile", "--dump-dom", "--virtual-time-budget=2000")
    assert {"/picture.png", "/style.css", "/code.js", "/paper.png", "/frame"} <= set(asked)
    assert "<title>changed</title>" in dom


def test_the_screen_shows_the_pixels_of_the_tuples(report: Path, tmp_path: Path) -> None:
    size = f"--window-size={WIDTH_PX},6000"
    expression = (
        "[...document.querySelectorAll('img, svg[role=img], h1, .notice, table, nav')].map(e => {const r = "
        "e.getBoundingClientRect(); return [e.tagName.toLowerCase(), r.left, r.top, r.width, r.height]})"
    )
    boxes = ask(report, expression, tmp_path / "profile", size)
    shot = tmp_path / "page.png"
    run(report, tmp_path / "profile", f"--screenshot={shot}", size, NO_NETWORK)
    with Image.open(shot) as picture:
        screen = np.asarray(picture.convert("RGB"))
    assert screen.shape == (6000, WIDTH_PX, 3)
    assert (screen[:, :8] == 255).all() and (screen[:, -8:] == 255).all()  # white paper
    shown = [box for box in boxes if box[3] > 0 and box[2] + box[4] < 6000]
    assert [kind for kind, *_ in shown].count("img") == 2 + 2 and len(shown) > 15
    for kind, left, top, width, height in shown:
        region = screen[round(top) : round(top + height), round(left) : round(left + width)]
        # Something dark is written or drawn on every part, and its paper is light.
        assert region.min() < 120 and np.median(region.max(axis=2)) > 100, kind
    # The first sheet pixel for pixel, and in it the crops of the tuples.
    _, left, top, width, height = next(box for box in shown if box[0] == "img")
    assert left == int(left) and width == int(width)
    region = screen[round(top) : round(top) + int(height), int(left) : int(left + min(width, WIDTH_PX - left))]
    with Image.open(report.parent / "tuples-train.png") as picture:
        np.testing.assert_array_equal(region, np.asarray(picture)[:, : region.shape[1]])
    shards = ShardSet(report.parent.parent / "shards")
    first = shards[choose_rows(shards, 1, "train")[0]]
    np.testing.assert_array_equal(region[36 : 36 + 96, 104 : 104 + 96], first.images["c23"])


def test_tabs_change_by_a_click_and_paper_shows_them_all(report: Path, tmp_path: Path) -> None:
    expression = (
        "[...document.querySelectorAll('.tabs')].map(t => [...t.querySelectorAll('input')].map(b => { b.click(); "
        "return [...t.querySelectorAll('.panel')].map(p => getComputedStyle(p).display) }))"
    )
    only = [["block" if panel == tab else "none" for panel in range(4)] for tab in range(4)]
    assert ask(report, expression, tmp_path / "profile") == [only, only]
    # The rules for paper, on the screen.
    paper = report.with_name("paper.html")
    paper.write_text(report.read_text().replace("@media print", "@media screen"))
    heights = (
        "['.panel img', 'details table', 'nav', '.tabs > input'].map(s => "
        "[...document.querySelectorAll(s)].map(e => e.checkVisibility() ? e.getBoundingClientRect().height : 0))"
    )
    panels, folded, navigation, buttons = ask(paper, heights, tmp_path / "profile")
    assert len(panels) == 8 and min(panels) > 200 and len(folded) == 1 and folded[0] > 50
    assert navigation == [0] and set(buttons) == {0}
    panels, folded, navigation, buttons = ask(report, heights, tmp_path / "profile")
    assert panels.count(0) == 6 and folded == [0] and navigation[0] > 50 and min(buttons) > 5
    paper.unlink()
    paper = tmp_path / "page.pdf"
    run(report, tmp_path / "profile", f"--print-to-pdf={paper}", "--no-pdf-header-footer", NO_NETWORK)
    data = paper.read_bytes()
    assert data.startswith(b"%PDF-") and len(re.findall(rb"/Subtype\s*/Image", data)) >= 10
    assert len(re.findall(rb"/Type\s*/Page\b(?!s)", data)) > 3


def test_the_screenshot_helper_would_see_a_broken_picture(report: Path, tmp_path: Path) -> None:
    """A page whose picture is cut short is told apart: the checks above are not empty."""
    broken = tmp_path / "broken.html"
    text = report.read_text()
    start = text.index("data:image/png;base64,") + 30
    broken.write_text(text[:start] + "AAAA" * 8 + text[start + 64 :])
    states = ask(broken, "[...document.images].map(i => i.naturalWidth)", tmp_path / "profile")
    buffer = io.BytesIO((report.parent / "tuples-train.png").read_bytes())
    assert states[0] == 0 and states[1] == Image.open(buffer).size[0]
