import contextlib
import csv
import io
import math
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qadprep.catalog import base
from qadprep.catalog.base import Catalog, Clip, read_dataset
from qadprep.catalog.generic import compressed_path, read_generic
from qadprep.catalog.manifest import read_manifest, write_manifest
from qadprep.errors import UserError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def table(root: Path, text: str, name: str = "clips.csv") -> Path:
    """A CSV beside which every file in its first column exists."""
    file = root / name
    file.write_text(text, "utf-8")
    return file


def clips(catalog: Catalog) -> dict[str, Clip]:
    return {f"{clip.method}/{clip.name}": clip for clip in catalog.clips}


def test_path_and_label_are_enough(tmp_path: Path) -> None:
    touch(tmp_path, "real/a b.mp4", "real/two.mov", "fake/three.mp4")
    file = table(tmp_path, "path,label\nreal/a b.mp4,0\nreal/two.mov,Real\nfake/three.mp4,fake\n")
    catalog = read_generic(file)
    assert catalog.root == tmp_path
    assert catalog.clips == [
        Clip("generic", "original", "a-b", 0, "none", "a-b", "a-b", "", {"raw": "real/a b.mp4"}),
        Clip("generic", "fake", "three", 1, "none", "three", "three", "", {"raw": "fake/three.mp4"}),
        Clip("generic", "original", "two", 0, "none", "two", "two", "", {"raw": "real/two.mov"}),
    ]
    assert catalog.ignored == catalog.gaps == catalog.remarks == [] and catalog.expected == {}


FULL = """\
path,label,split,group,method,quality,name,source,mask,comment
o/1.mp4,0,train,g1,,,,x,,hello
o/1.c23.mp4,0,train,g1,,c23,1,,,
f/1.mp4,1,Train,g1,swap,raw,,p7,m/1.mp4,
f/1_low.mp4,1,,,swap,c40,1,,,
f/2.mp4,1,val,g2,swap,c0,,p8,m/none.mp4,
"""


def test_all_columns_from_csv_and_parquet(tmp_path: Path) -> None:
    touch(tmp_path, "o/1.mp4", "o/1.c23.mp4", "f/1.mp4", "f/1_low.mp4", "f/2.mp4", "m/1.mp4")
    catalog = read_generic(table(tmp_path, FULL))
    assert catalog.clips == [
        Clip("generic", "original", "1", 0, "train", "g1", "g1", "", {"raw": "o/1.mp4", "c23": "o/1.c23.mp4"}),
        Clip("generic", "swap", "1", 1, "train", "g1", "g1", "p7", {"raw": "f/1.mp4", "c40": "f/1_low.mp4"}, "m/1.mp4"),
        Clip("generic", "swap", "2", 1, "val", "g2", "g2", "p8", {"raw": "f/2.mp4"}),
    ]
    assert catalog.remarks == [("clips.csv", "columns not used: comment")]
    assert catalog.gaps == [("line 6: m/none.mp4", "the mask is not there; the clip is taken without it")]
    assert catalog.ignored == []
    write_manifest(catalog.clips, tmp_path / "manifest.parquet")
    assert read_manifest(tmp_path / "manifest.parquet") == catalog.clips
    # The same as parquet, with numbers as labels and with a missing text as pandas writes it.
    rows = list(csv.DictReader(io.StringIO(FULL)))
    columns = {name: pa.array([row[name] or None for row in rows], pa.string()) for name in rows[0]}
    columns["label"] = pa.array([int(row["label"]) for row in rows])
    columns["comment"] = pa.array([math.nan] * len(rows))
    pq.write_table(pa.table(columns), tmp_path / "k=v.parquet")
    again = read_generic(tmp_path / "k=v.parquet")
    assert again.clips == catalog.clips
    assert again.gaps == [("row 5: m/none.mp4", "the mask is not there; the clip is taken without it")]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("a.mp4,2,,,", "label '2'; expected 0, 1, real or fake"),
        ("a.mp4,,,,", "label ''; expected 0, 1, real or fake"),
        ("a.mp4,1,testing,,", "split 'testing'; expected train, val, test, none"),
        ("a.mp4,1,,original,", "label 1 with method 'original'; original is the method of label 0 and only of it"),
        ("a.mp4,0,,swap,", "label 0 with method 'swap'; original is the method of label 0 and only of it"),
        ("a.mp4,1,,a/b,", "method 'a/b'; expected letters, digits, _ and - only"),
        ("a.mp4,1,,swap,../x", "quality '../x'; expected a word such as raw, c23 or c40"),
        (",1,,,", "no path"),
        ("gone.mp4,1,,,", "no such file"),
        ("b\\a.mp4,1,,,", "no such file; expected / between folders"),
        ("/etc/passwd,1,,,", "an absolute path; expected one relative to the table's folder"),
        ("C:\\a.mp4,1,,,", "an absolute path; expected one relative to the table's folder"),
        ("../a.mp4,1,,,", "a path that leaves the table's folder"),
        ("b/../../a.mp4,1,,,", "a path that leaves the table's folder"),
        ("a.tar::../x,1,,,", "a path that leaves the table's folder"),
        ("a.tar::nope,1,,,", "the tar has no such folder of pictures"),
        ("a.mp4::x,1,,,", "the tar has no such folder of pictures (the file has 0 bytes; fetch it again)"),
        ("gone.tar::x,1,,,", "no such file"),
        ("b,1,,,", "a folder; write a slash at its end if it holds one sequence of pictures"),
        ("a.mp4/,1,,,", "not a folder; leave the slash at its end out"),
        ("b/1.png,1,,,", "a single picture; expected a video, or a folder of pictures with a slash at its end"),
        ("b\x1b[2J.mp4,1,,,", "a path with control characters"),
        ("a.tar::/x,1,,,", "an absolute path; expected one relative to the table's folder"),
        ("é.mp4,1,,,", "its path gives no name; add the column name"),
        ("a.mp4,1,,", "4 fields; expected 5"),
        ("a.mp4,1,,,,,", "7 fields; expected 5"),
    ],
)
def test_a_bad_row_is_named_and_the_rest_is_read(tmp_path: Path, row: str, reason: str) -> None:
    folder = tmp_path / "data"
    touch(folder, "good.mp4", "a.mp4", "b/1.png", "é.mp4")
    touch(tmp_path, "a.mp4")
    with tarfile.open(folder / "a.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("x/1.png"))
    catalog = read_generic(table(folder, f"path,label,split,method,quality\ngood.mp4,0,,,\n\n{row}\n"))
    assert list(clips(catalog)) == ["original/good"]
    assert catalog.ignored == [(f"line 4: {row.split(',')[0]}".rstrip(": "), reason)]


def test_pictures_in_folders_and_tars(tmp_path: Path) -> None:
    touch(tmp_path, "seq/7/1.png", "seq/8/1.png")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("./x/7/1.png", "./1.png"):
            tar.addfile(tarfile.TarInfo(name))
    catalog = read_generic(table(tmp_path, "path,label\n./seq//7/,0\nseq/8/,0\na.tar::x/7/,0\na.tar::,1\n"))
    assert {name: clip.paths["raw"] for name, clip in clips(catalog).items()} == {
        "original/seq-7": "seq/7/",
        "original/8": "seq/8/",
        "original/x-7": "a.tar::x/7",
        "fake/a": "a.tar::",
    }
    assert catalog.ignored == []


def test_equal_stems_take_their_folders_into_the_name(tmp_path: Path) -> None:
    paths = [f"{person}/{quality}/videos/{n}.mp4" for person in "ab" for quality in ("raw", "c23") for n in (1, 2)]
    paths.remove("b/c23/videos/2.mp4")
    paths.remove("b/raw/videos/2.mp4")
    touch(tmp_path, *paths)
    rows = "".join(f"{path},0,{path.split('/')[1]}\n" for path in paths)
    catalog = read_generic(table(tmp_path, "path,label,quality\n" + rows))
    assert {clip.name: clip.paths for clip in catalog.clips} == {
        "2": {"raw": "a/raw/videos/2.mp4", "c23": "a/c23/videos/2.mp4"},
        "a-videos-1": {"raw": "a/raw/videos/1.mp4", "c23": "a/c23/videos/1.mp4"},
        "b-videos-1": {"raw": "b/raw/videos/1.mp4", "c23": "b/c23/videos/1.mp4"},
    }
    assert catalog.ignored == []


def test_a_longer_name_that_meets_another_file_is_lengthened_again(tmp_path: Path) -> None:
    touch(tmp_path, "p/a/x.mp4", "p/b/x.mp4", "q/a-x.mp4")
    catalog = read_generic(table(tmp_path, "path,label\np/a/x.mp4,0\np/b/x.mp4,0\nq/a-x.mp4,0\n"))
    assert {clip.name: clip.paths["raw"] for clip in catalog.clips} == {
        "p-a-x": "p/a/x.mp4",
        "b-x": "p/b/x.mp4",
        "q-a-x": "q/a-x.mp4",
    }


def test_rows_of_one_clip_that_contradict_each_other(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{i}.mp4" for i in range(9)))
    text = (
        "path,label,split,quality,name,group,source\n"
        "0.mp4,0,train,raw,n,g,\n"
        "1.mp4,0,test,c23,n,,\n"
        "2.mp4,0,train,raw,n,,\n"
        "3.mp4,0,,c23,n,h,\n"
        "./0.mp4,0,train,c40,n,,\n"
        "4.mp4,0,val,raw,,,\n"
        "4.mp4,1,val,raw,,,\n"
        "5.mp4,0,,raw,,g,\n"
        "6.mp4,1,,raw,k,,s1\n"
        "7.mp4,1,,c23,k,,s2\n"
    )
    catalog = read_generic(table(tmp_path, text))
    assert {name: clip.paths for name, clip in clips(catalog).items()} == {
        "original/n": {"raw": "0.mp4"},
        "fake/k": {"raw": "6.mp4"},
    }
    assert dict(catalog.ignored) == {
        "line 3: 1.mp4": "split 'test', but 'train' on line 2 for the same clip",
        "line 4: 2.mp4": "original/n at raw is already there, on line 2",
        "line 5: 3.mp4": "group 'h', but 'g' on line 2 for the same clip",
        "line 6: 0.mp4": "already listed on line 2",
        "line 7: 4.mp4": "listed with the other label too, on line 8",
        "line 8: 4.mp4": "listed with the other label too, on line 7",
        "line 9: 5.mp4": "group g already has the original n; a group shows one recording",
        "line 11: 7.mp4": "source 's2', but 's1' on line 10 for the same clip",
    }


def test_equal_names_do_not_make_a_group(tmp_path: Path) -> None:
    touch(tmp_path, "o/1.mp4", "f/1.mp4", "f/2.mp4", "g/2.mp4", "g/3.mp4")
    text = (
        "path,label,method,group\no/1.mp4,0,,\nf/1.mp4,1,swap,\nf/2.mp4,1,swap,\ng/2.mp4,1,blend,\ng/3.mp4,1,blend,1\n"
    )
    catalog = read_generic(table(tmp_path, text))
    assert {name: clip.group for name, clip in clips(catalog).items()} == {
        "original/1": "1",
        "swap/1": "swap-1",
        "swap/2": "swap-2",
        "blend/2": "blend-2",
        "blend/3": "1",
    }


def test_the_registry_knows_where_made_qualities_lie(tmp_path: Path) -> None:
    entry = base.find_dataset("generic")
    assert entry.compressed_path is compressed_path and not entry.raw_is_lossless
    touch(tmp_path, "a.mp4")
    assert read_dataset("generic", table(tmp_path, "path,label\na.mp4,0\n")).root == tmp_path


def test_made_qualities_are_found(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.mp4", "a/y.avi", "a/z/1.png", "c40/a/x.mp4", "c23/own.mp4")
    for path in ("a/x.mp4", "a/y.avi", "a/z/"):
        touch(tmp_path, compressed_path(path, "c23"))
    text = "path,label,quality,name\na/x.mp4,0,,\na/y.avi,0,,\na/z/,0,,\nc23/own.mp4,0,c23,x\n"
    catalog = read_generic(table(tmp_path, text))
    assert {clip.name: clip.paths for clip in catalog.clips} == {
        "x": {"raw": "a/x.mp4", "c23": "c23/own.mp4", "c40": "c40/a/x.mp4"},
        "y": {"raw": "a/y.avi", "c23": "c23/a/y.avi.mp4"},
        "z": {"raw": "a/z/", "c23": "c23/a/z/pictures.mp4"},
    }
    assert catalog.remarks == [("c23, c40", "3 made files found that the table does not list")]
    assert compressed_path("a.tar.gz::b/x", "c40") == "c40/a.tar.gz/b/x/pictures.mp4"


def test_a_byte_order_mark_blanks_and_quotes(tmp_path: Path) -> None:
    touch(tmp_path, "a, b.mp4")
    (tmp_path / "t.csv").write_bytes(b'\xef\xbb\xbf\r\npath , label\r\n"a, b.mp4", 0 \r\n,\r\n')
    assert [clip.name for clip in read_generic(tmp_path / "t.csv").clips] == ["a-b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b" \n\n", "the file is empty"),
        (b"path,label\n", "no row could be taken: it has no rows"),
        (b"path,label\ngone.mp4,1\n", "no row could be taken; line 2: gone.mp4: no such file"),
        (b"path;label\na.mp4;1\n", "its columns are separated by ';'; expected commas"),
        (b"path\tlabel\na.mp4\t1\n", r"its columns are separated by '\t'; expected commas"),
        (b"path,class\na.mp4,1\n", "column 'label' is missing; found path, class"),
        (b"label\n1\n", "column 'path' is missing; found label"),
        (b"path,label,path\na.mp4,1,b\n", "column 'path' is there twice"),
        (b"a.mp4,1\nb.mp4,0\n", "line 1 is no header ('a.mp4' ...); expected the columns path, label"),
        ("path,label\nä.mp4,1\n".encode("latin-1"), "not UTF-8 text (line 2)"),
        ("path,label\na.mp4,1\n".encode("utf-16"), "not UTF-8 text (line 1)"),
        ("path,label\na.mp4,1\n".encode("utf-16-le"), "it holds NUL bytes"),
        (b'path,label\n"a.mp4,1\n', "not a readable CSV (line 2"),
        (b"PAR1 and then nonsense", "not a readable parquet file"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "not UTF-8 text (line 1)"),
    ],
)
def test_files_that_are_no_table(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_generic(tmp_path / "t.csv")
    assert (
        message in str(caught.value) and str(caught.value).startswith(str(tmp_path)) and "\n" not in str(caught.value)
    )


def test_a_folder_or_nothing_instead_of_a_table(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder; expected a CSV or parquet file with the columns path, label"):
        read_generic(tmp_path)
    with pytest.raises(UserError, match="No such file"):
        read_generic(tmp_path / "gone.csv")


NAMES = st.lists(st.text("ab-_. :;,\"'é\n", min_size=1, max_size=5), min_size=1, max_size=3).map("/".join)
CELLS = st.lists(
    st.tuples(
        NAMES,
        st.sampled_from(["0", "1", "real", "FAKE", "2", ""]),
        st.sampled_from(["", "train", "val", "exam"]),
        st.sampled_from(["", "original", "swap", "fake"]),
        st.sampled_from(["", "raw", "c23", "c0", "C23"]),
        st.sampled_from(["", "", "n", "a b"]),
    ),
    max_size=8,
)


@settings(max_examples=200, deadline=None)
@given(rows=CELLS)
def test_every_row_ends_in_a_clip_or_in_a_reason(tmp_path_factory: pytest.TempPathFactory, rows: list) -> None:
    folder = tmp_path_factory.mktemp("t")
    touch(folder, "sure.mp4")
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["path", "label", "split", "method", "quality", "name"])
    writer.writerow(["sure.mp4", "0", "", "", "raw", "surely"])
    for row in rows:
        file = folder / row[0]
        if ".." not in row[0].split("/") and not file.exists() and file.parent.resolve().is_relative_to(folder):
            with contextlib.suppress(OSError):
                touch(folder, row[0])
        writer.writerow(row)
    (folder / "t.csv").write_text(text.getvalue(), "utf-8", newline="")
    catalog = read_generic(folder / "t.csv")
    assert sum(len(clip.paths) for clip in catalog.clips) + len(catalog.ignored) == len(rows) + 1
    write_manifest(catalog.clips, folder / "m.parquet")  # its reader checks names, labels and paths
    assert sorted(read_manifest(folder / "m.parquet"), key=str) == sorted(catalog.clips, key=str)
    originals = [clip.group for clip in catalog.clips if clip.method == "original"]
    assert len(originals) == len(set(originals))


DOCS = Path(__file__).parents[3] / "docs" / "datasets" / "generic.md"


def test_the_table_in_the_docs_is_read_as_it_says(tmp_path: Path) -> None:
    text = DOCS.read_text("utf-8").split("```\n")[1]
    paths = [line.split(",")[0] for line in text.splitlines()[1:]]
    touch(tmp_path, *(f"{path}1.png" if path.endswith("/") else path for path in paths if "::" not in path))
    with tarfile.open(tmp_path / "shots.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("dora/07/1.png"))
    catalog = read_generic(table(tmp_path, text))
    assert catalog.ignored == [] and sum(len(clip.paths) for clip in catalog.clips) == len(paths) == 5
    assert {name: (clip.split, clip.group, list(clip.paths)) for name, clip in clips(catalog).items()} == {
        "original/anna": ("train", "anna", ["raw", "c40"]),
        "FaceSwap/anna_by_ben": ("train", "anna", ["raw"]),
        "original/carl": ("test", "carl", ["raw"]),
        "fake/07": ("test", "07", ["raw"]),
    }


def test_the_reader_in_the_docs_works_as_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = DOCS.read_text("utf-8").split("## Add a dataset")[1]
    code = text.split("```python\n")[1].split("```")[0]
    points = text.split("```toml\n")[1].split("```")[0]
    package = tmp_path / "site"
    touch(package, "mydataset-1.0.dist-info/METADATA")
    (package / "mydataset-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: mydataset\nVersion: 1.0\n"
    )
    # The installer turns [project.entry-points."<group>"] into this file.
    header, line = points.strip().splitlines()
    assert header == '[project.entry-points."qadprep.datasets"]'
    line = line.replace('"', "")
    (package / "mydataset-1.0.dist-info" / "entry_points.txt").write_text(f"[qadprep.datasets]\n{line}\n")
    (package / f"{line.split('=')[1].strip()}.py").write_text(code)
    monkeypatch.syspath_prepend(package)
    monkeypatch.setattr(base, "_DATASETS", dict(base._DATASETS))
    root = tmp_path / "root"
    with pytest.raises(UserError, match="not there"):
        read_dataset("mydataset", root)
    root.mkdir()
    with pytest.raises(UserError, match=r"expected files such as real/1\.mp4"):
        read_dataset("mydataset", root)
    touch(root, "real/1.mp4", "real/2.mp4", "swapped/2.mp4", "swapped/3.mp4", "real/notes.txt", "c23/real/1.mp4")
    catalog = read_dataset("mydataset", root)
    assert {name: (clip.label, clip.group, clip.paths) for name, clip in clips(catalog).items()} == {
        "original/1": (0, "1", {"raw": "real/1.mp4", "c23": "c23/real/1.mp4"}),
        "original/2": (0, "2", {"raw": "real/2.mp4"}),
        "swapped/2": (1, "2", {"raw": "swapped/2.mp4"}),
        "swapped/3": (1, "3", {"raw": "swapped/3.mp4"}),
    }
    assert catalog.ignored == [("real/notes.txt", "not an mp4 file")]


def test_derived_groups_never_meet(tmp_path: Path) -> None:
    touch_all = ("a/x.mp4", "b/x.mp4", "c.mp4")
    for name in touch_all:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    rows = ["path,label,method,name", "a/x.mp4,1,A,x", "b/x.mp4,1,B,x", "c.mp4,1,C,A-x"]
    (tmp_path / "list.csv").write_text("\n".join(rows))
    groups = [clip.group for clip in read_dataset("generic", tmp_path / "list.csv").clips]
    assert len(set(groups)) == 3


def test_every_face_with_a_mask(tmp_path: Path) -> None:
    for name in ("x.mp4", "mask.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "list.csv").write_text("path,label,mask,faces\nx.mp4,1,mask.mp4,all\nx.mp4,1,,some\n")
    catalog = read_dataset("generic", tmp_path / "list.csv")
    [clip] = catalog.clips
    assert (clip.faces, clip.mask) == ("all", "mask.mp4")
    assert [reason for _, reason in catalog.ignored] == ["faces 'some'; expected largest or all"]


@pytest.mark.parametrize("text", [",,\n", "\ufeff", " , \n\n"])
def test_a_table_without_a_header(tmp_path: Path, text: str) -> None:
    (tmp_path / "list.csv").write_text(text, "utf-8")
    with pytest.raises(UserError, match=r"no header line|the file is empty"):
        read_dataset("generic", tmp_path / "list.csv")


def test_a_pipe_and_a_giant_are_no_tables(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(UserError, match="not a regular file"):
        read_dataset("generic", tmp_path / "pipe.csv")
    with (tmp_path / "giant.csv").open("wb") as file:
        file.truncate(200 << 30)
    with pytest.raises(UserError, match="has 214748364800 bytes; a list has 1073741824 at most"):
        read_dataset("generic", tmp_path / "giant.csv")
