"""The report: what the tables and figures hold, and that the page is whole by itself."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from helpers.pages import bars, embedded, eventful_faces, part, png, row_of
from helpers.sets import made_packs, made_shards
from helpers.summaries import DETAIL
from PIL import Image
from skimage.metrics import structural_similarity
from typer.testing import CliRunner

from qadprep.cli import app
from qadprep.report import Section, write_report
from qadprep.report_columns import IndexColumns
from qadprep.report_numbers import distribution_sections, set_sections
from qadprep.report_page import MAX_ROWS, page
from qadprep.report_plots import histogram
from qadprep.report_section import Picture, Tabs
from qadprep.shardset import ShardSet
from qadprep.sheets import (
    GAP_PX,
    LINE_PX,
    choose_rows,
)
from qadprep.store import open_folder


@pytest.fixture(scope="module")
def made_report(made_shards_master: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """The report of the made set and of an eventful extraction by the command: its folder, and what was printed."""
    folder = tmp_path_factory.mktemp("made-report")
    faces, out = eventful_faces(folder / "faces"), folder / "out"
    done = command(made_shards_master, "--out", out, "--faces", faces, "--rows", 4, "--sample", 1000, "--json")
    assert done.exit_code == 0, done.output
    return out, json.loads(done.stdout)


def command(*words: object):
    """`qadprep report` in this process."""
    return CliRunner().invoke(app, ["report", *map(str, words)])


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the figures out, which take most of a small report's time."""
    chapter = Section("Distributions", anchor="distributions", chapter=True)
    monkeypatch.setattr("qadprep.report.distribution_sections", lambda *facts: [chapter])


@pytest.fixture
def captions_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A figure's caption in its place."""
    for name in ("boxes", "histogram", "stacks"):
        monkeypatch.setattr(f"qadprep.report_numbers.{name}", lambda *words, **settings: words[4])


def test_the_command_writes_one_page_that_needs_nothing_else(made_report: tuple[Path, dict]) -> None:
    out, result = made_report
    names = [f"{kind}-{split}.png" for split in ("train", "val", "test") for kind in ("tuples", "methods")]
    assert [Path(sheet).name for sheet in result["contact_sheets"]] == names and result["damaged"] == []
    assert sorted(file.name for file in out.iterdir()) == sorted([*names, "report.html"])
    html = (out / "report.html").read_text()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)[1]
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
    assert "<script" not in html and "<link" not in html and "@import" not in html and " on" not in policy
    assert not re.findall(r"https?://", html)
    # Links stay inside the page, and lead somewhere; ids are there once.
    ids = re.findall(r"\bid=['\"]([^'\"]+)['\"]", html)
    links = re.findall(r"href=['\"]([^'\"]+)['\"]", html)
    assert len(set(ids)) == len(ids) and links and all(link[0] == "#" and link[1:] in ids for link in links)
    assert {name[5:-1] for name in re.findall(r"url\(#[^)]+\)", html)} <= set(ids)
    # Three sheets of tuples; train has two recordings, val and test one each: three qualities and what changed.
    assert len(embedded(html)) == 3 + 4 * 4 == html.count("<img ")
    assert all(re.search(r" alt='[^']{20,}'", tag) for tag in re.findall(r"<img [^>]*?src=", html))
    assert html.count("<table>") == html.count("<caption")
    # PSNR, SSIM, three measures, tuples per clip, bytes per tuple and per quality.
    assert html.count("<svg role='img' aria-label='") == 8
    assert "Tuples per clip: real 4 to 4, fake 4 to 4" in html


def test_another_run_gives_the_same_bytes(
    made_report: tuple[Path, dict], made_shards_master: Path, tmp_path: Path
) -> None:
    import matplotlib as mpl

    with mpl.rc_context({"font.size": 20, "axes.facecolor": "red", "svg.fonttype": "path"}):  # the user's own taste
        write_report(made_shards_master, tmp_path, faces=made_report[0].parent / "faces", rows=4, sample=1000)
    files = sorted(file.name for file in tmp_path.iterdir())
    assert len(files) == 7
    for name in files:
        assert (tmp_path / name).read_bytes() == (made_report[0] / name).read_bytes(), name


def test_counts_and_qualities_agree_with_the_index(made_report: tuple[Path, dict], made_shards_master: Path) -> None:
    html = (made_report[0] / "report.html").read_text()
    heads = re.findall(r"<th [^>]*>(.*?)</th>", part(html, "counts"))
    assert heads == [
        "split",
        "method",
        "label",
        "clips",
        "tuples",
        "recordings",
        *(f"crops at {q}" for q in ("raw", "c23", "c40")),
        "unaltered",
    ]
    assert row_of(part(html, "counts"), "train", "Deepfakes") == [
        "train",
        "Deepfakes",
        "fake",
        "3",
        "12",
        "3",
        "12",
        "12",
        "12",
        "3",
    ]
    assert row_of(part(html, "counts"), "test", "original") == [
        "test",
        "original",
        "real",
        "1",
        "4",
        "1",
        "4",
        "4",
        "4",
        "0",
    ]
    assert row_of(part(html, "counts"), "all") == ["all", "", "", "15", "60", "", "60", "60", "60", "5"]
    table = ShardSet(made_shards_master).table
    sizes = table["c40_size"].to_numpy()
    assert row_of(part(html, "crops-per-quality"), "c40")[1:] == [
        "60",
        f"{sizes.sum() / 1e6:,.1f}",
        f"{sizes.mean() / 1e3:.1f}",
    ]
    fakes = table.filter(pc.equal(table["method"], "FaceSwap"))
    wanted = [f"{fakes[f'{quality}_psnr_db'].to_numpy().mean():.1f}" for quality in ("c23", "c40")]
    assert row_of(part(html, "psnr"), "FaceSwap") == ["FaceSwap", wanted[0], "0", wanted[1], "0"]
    assert row_of(part(html, "face-size"), "real") == ["real", "20", "80", "87.5", "95", "102.5", "110"]
    lengths = table.filter(pc.equal(table["label"], 0))["length"].to_numpy() / 1e3
    assert row_of(part(html, "bytes-per-tuple"), "real")[4] == f"{np.median(lengths):.4g}"


def test_ssim_of_the_sample_is_what_the_crops_give(made_report: tuple[Path, dict], made_shards_master: Path) -> None:
    html = part((made_report[0] / "report.html").read_text(), "ssim")
    values = [
        structural_similarity(item.images["raw"], item.images["c40"], channel_axis=2, data_range=255)
        for item in ShardSet(made_shards_master)
        if item.method == "FaceSwap"
    ]
    cells = row_of(html, "FaceSwap")
    assert cells[1] == "20" and cells[3] == f"{np.mean(values):.4f}" and 0.1 < float(cells[3]) < 0.99
    assert "A sample of 60 tuples" in html


def test_histograms_are_shares_of_each_label(made_shards_master: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    drawn = []
    own = Axes.stairs

    def stairs(axes: Axes, shares: np.ndarray, edges: np.ndarray, **settings: object) -> object:
        drawn.append((shares, edges))
        return own(axes, shares, edges, **settings)

    monkeypatch.setattr(Axes, "stairs", stairs)
    shards = ShardSet(made_shards_master)
    sections = distribution_sections(IndexColumns(shards.table), shards.qualities, {})
    assert [section.title for section in sections[1:3]] == ["PSNR against raw", "SSIM"]
    real, edges = drawn[0]
    # face_px is 80, 90, 100 or 110, a quarter of the tuples each.
    np.testing.assert_allclose(edges, np.linspace(80, 110, 41))
    assert [real[place] for place in (0, 13, 26, 39)] == [25.0] * 4
    clips, edges = drawn[6]  # four tuples each
    assert clips.tolist() == [100.0] and edges.tolist() == [3.5, 4.5]
    assert all(abs(shares.sum() - 100) < 1e-9 for shares, _ in drawn) and len(drawn) == 2 * 5
    # Sizes are multiples of a tar's blocks; bins that are no multiples would hold now one, now two of them.
    drawn.clear()
    sizes = np.repeat(np.arange(100, 200), 3) * 0.512
    histogram("sizes", {"all": sizes}, "kB", "alt", "caption", step=0.512)
    assert len(drawn[0][0]) == 34 and drawn[0][0][:33].tolist() == pytest.approx([3.0] * 33)


@pytest.mark.usefixtures("captions_only")
def test_an_index_of_an_older_version_says_what_it_lacks(made_shards_master: Path) -> None:
    shards = ShardSet(made_shards_master)
    lacking = [
        "group",
        "geometry",
        "face_px",
        "sharpness",
        "yaw_deg",
        "unaltered",
        "raw_psnr_db",
        "c23_psnr_db",
        "c40_psnr_db",
    ]
    columns = IndexColumns(shards.table.drop_columns(lacking))
    html = page("old", "", [*set_sections(shards, columns), *distribution_sections(columns, shards.qualities, {})])
    for name in ("face_px", "sharpness", "yaw_deg"):
        assert f"The index has no column {name}: written by an older version" in html
    assert "an index without PSNR" in html and "The index does not tell: it is of an older version." in html
    assert re.findall(r"<th [^>]*>(.*?)</th>", part(html, "counts"))[3:5] == ["clips", "tuples"]
    assert row_of(part(html, "counts"), "all")[3:] == ["15", "60", "60", "60", "60"]


@pytest.mark.usefixtures("captions_only")
def test_values_that_are_missing_or_infinite_are_counted_not_drawn(made_shards_master: Path) -> None:
    shards = ShardSet(made_shards_master)
    table = shards.table
    psnr = table["c23_psnr_db"].to_numpy().copy()
    chosen = np.flatnonzero(np.array(table["method"].to_pylist()) == "FaceSwap")
    psnr[chosen[:3]] = np.inf
    yaw = [None if place < 7 else value for place, value in enumerate(table["yaw_deg"].to_pylist())]
    for name, values in (("c23_psnr_db", psnr), ("yaw_deg", pa.array(yaw, pa.float32()))):
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    html = page("x", "", distribution_sections(IndexColumns(table), shards.qualities, {}))
    assert row_of(part(html, "psnr"), "FaceSwap")[1:3] == [f"{psnr[chosen[3:]].mean():.1f}", "3"]
    assert "7 tuples without a value." in part(html, "yaw") and "inf" not in part(html, "psnr").replace(
        "information", ""
    )


@pytest.mark.usefixtures("no_figures")
def test_a_set_with_one_quality_and_one_split(tmp_path: Path) -> None:
    packs = made_packs(tmp_path / "faces", {"000": "none"}, frames=1, qualities=("raw",))
    write_report(made_shards(tmp_path / "shards", packs), tmp_path / "out")
    html = (tmp_path / "out" / "report.html").read_text()
    assert "nothing to compare inside a row" in html
    assert len(embedded(html)) == 1 + 2
    assert row_of(part(html, "counts"), "none", "FaceSwap") == ["none", "FaceSwap", "fake", "1", "1", "1", "1", "0"]


@pytest.mark.usefixtures("no_figures")
def test_a_damaged_tuple_is_named_and_the_rest_is_shown(made_set: Path, tmp_path: Path) -> None:
    shards = ShardSet(made_set)
    row = choose_rows(shards, 4, "val")[0]
    key, where = shards.table["key"][row].as_py(), shards.table["offset"][row].as_py()
    with (made_set / shards.shards[shards.shard_number(row)]["url"]).open("r+b") as file:
        file.seek(where)
        file.write(b"another-name")
    done = command(made_set, "--out", tmp_path / "out", "--rows", 4, "--sample", 0)
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit)
    assert key in re.sub(r"[│\s]", "", done.stdout) and "damaged tuples" in done.stdout
    html = (tmp_path / "out" / "report.html").read_text()
    assert key in part(html, "damaged").replace("<wbr>", "")
    with Image.open(tmp_path / "out" / "tuples-val.png") as sheet:
        assert sheet.height == GAP_PX + LINE_PX + 3 * (72 + LINE_PX + GAP_PX)
    assert len(embedded(html)) == 3 + 4 * 4


@pytest.mark.usefixtures("no_figures")
def test_text_is_escaped(made_shards_master: Path, tmp_path: Path) -> None:
    extra = [Section("a <b>", "x & y", ("c",), [("<script>",)])]
    write_report(made_shards_master, tmp_path, title="<t>", notice="1 < 2", extra=extra, sample=0)
    html = (tmp_path / "report.html").read_text()
    assert "a &lt;b&gt;" in html and "x &amp; y" in html and "&lt;script&gt;" in html and "1 &lt; 2" in html
    assert "<script>" not in html and "<title>&lt;t&gt;</title>" in html
    titles = re.findall(r"<h2[^>]*>(.*?)</h2>", html)
    assert titles == ["The set", "Pictures", "In addition", "Distributions"]


@pytest.mark.usefixtures("no_figures")
def test_a_remote_set_gives_the_same_page(
    made_shards_master: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    remote = open_folder("memory://report-test/set")
    remote.mkdir(parents=True, exist_ok=True)
    for file in made_shards_master.iterdir():
        (remote / file.name).write_bytes(file.read_bytes())
    write_report("memory://report-test/set", tmp_path / "a", rows=3, sample=0)
    write_report(made_shards_master, tmp_path / "b", rows=3, sample=0)
    assert (tmp_path / "a" / "report.html").read_bytes() == (tmp_path / "b" / "report.html").read_bytes()


def test_a_page_of_sections() -> None:
    sections = [
        Section("Part", "before any chapter"),
        Section("Chapter", anchor="c", chapter=True),
        Section(
            "Part", "", ("name", "n", "share"), [("a/b", 12345, 0.5), ("c", 3, float("nan"))], caption="Both parts"
        ),
        Section("Empty"),
        Section("Long", "", ("n",), [(n,) for n in range(MAX_ROWS + 7)], folded=True, caption="many"),
        Section("Pick", pictures=[Tabs("which", [(name, Picture(png(5, 3), f"the {name}")) for name in ("x", "y")])]),
    ]
    html = page("Title", "", sections)
    assert re.findall(r"<a href='#([^']+)'>", html) == ["part", "c", "part-2", "long", "pick"]
    assert (
        "<td>a/<wbr>b</td><td class='n'>12,345</td><td class='n'>0.500</td>" in html and "<td class='n'>-</td>" in html
    )
    assert "<caption>Both parts</caption>" in html and "<h3 id='part-2'>Part</h3>" in html and "Empty" not in html
    assert f"<p>The first {MAX_ROWS} of 507 rows.</p></details>" in html and html.count("<tr>") == 1 + 2 + 1 + MAX_ROWS
    assert html.count("<input type='radio' name='pick-tabs-0'") == 2 and html.count(" checked>") == 1
    assert ".tabs > input:nth-of-type(2):checked ~ .panel:nth-of-type(2) { display: block; }" in html
    assert "<img alt='the y' width='5' height='3' src='data:image/png;base64," in html
    assert page("Title", "", []).count("<nav") == 0
    assert "<h2 id='part'>Part</h2>" in page("Without chapters", "", [Section("Part", "text")])


def test_the_chapter_on_the_extraction(made_report: tuple[Path, dict]) -> None:
    html = (made_report[0] / "report.html").read_text()
    assert "<h2 id='extraction' class='chapter'>Extraction</h2>" in html
    assert row_of(html, "FaceSwap", "val") == ["FaceSwap", "val", "3", "2", "1 small_face", "2 raw, 2 c40"]
    assert row_of(html, "c40", "4") == ["c40", "4", "3", "1"]
    assert row_of(html, "Deepfakes", "raw")[2:8] == ["0", "0", "0", "1", "0", "1 by +2"]
    moved, refused = html.index(">Shifted or placed elsewhere</h3>"), html.index(">Refused by the sync proof</h3>")
    assert moved < html.index("<td>centre_crop at 80,0</td>") < refused < html.index(f"<td>{DETAIL}</td>")
    assert "engine ray" in html and "Detection: 4 frames" in html and "8.0 frames decoded" in html
    assert "clip &lt;i&gt;" in html and "ends early &amp; late" in html and "<i>" not in html.replace("<i style", "")
    # The bar: parts of a width of 1000, one after the other.
    assert bars(part(html, "where-the-time-went")) == [
        ("0.00", "400.00", "decode: 4.0 s, 40 %"),
        ("400.00", "200.00", "warp: 2.0 s, 20 %"),
        ("600.00", "100.00", "and &lt;: 1.0 s, 10 %"),
        ("700.00", "300.00", "others: 3.0 s, 30 %"),
    ]
    sync = part(html, "sync-proof-files-per-method-quality-and-verdict")
    assert [label for _, _, label in bars(sync)] == [
        "reference: 2 files, 25 %", "proved: 3 files, 38 %", "static: 1 files, 12 %", "shifted: 1 files, 12 %",
        "refused: 1 files, 12 %",
    ]  # fmt: skip
