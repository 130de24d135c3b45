"""Odd entries of a tree: each costs itself alone and is named."""

import os
from pathlib import Path

import pytest

from qadprep.catalog import base
from qadprep.catalog.base import MAX_NAME, Catalog, Clip, read_dataset
from qadprep.catalog.files import collect_troubles, entries, word
from qadprep.errors import UserError
from qadprep.scan import scan


@pytest.fixture
def celebdf(tmp_path: Path) -> Path:
    for name in ("Celeb-real/id1_0000.mp4", "YouTube-real/00001.mp4"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    return tmp_path


def reasons(root: Path) -> dict[str, str]:
    catalog = read_dataset("celebdf", root)
    assert {clip.name for clip in catalog.clips} == {"id1_0000", "00001"}
    return dict(catalog.ignored)


def test_link_loops(celebdf: Path) -> None:
    (celebdf / "Celeb-real" / "self").symlink_to(celebdf / "Celeb-real" / "self")
    (celebdf / "Celeb-real" / "up").symlink_to(celebdf)
    found = reasons(celebdf)
    assert found["Celeb-real/up"] == "a link to a folder above it"
    assert found["Celeb-real/self"].startswith("a link that cannot be followed")


def test_two_folders_that_lead_to_each_other(tmp_path: Path) -> None:
    for name, other in (("x", "y"), ("y", "x")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "l").symlink_to(tmp_path / other)
    with collect_troubles() as troubles:
        [first] = entries(tmp_path / "x")
        assert entries(Path(first.path)) == []
    assert list(troubles.values()) == ["a link to a folder above it"]


def test_a_name_that_is_not_utf8(celebdf: Path) -> None:
    Path(os.fsdecode(os.fsencode(celebdf / "Celeb-real") + b"/\xe9t\xe9.mp4")).touch()
    assert reasons(celebdf) == {"Celeb-real/\\udce9t\\udce9.mp4": "its name is not UTF-8; rename it"}
    scan(celebdf, "celebdf", celebdf / "m.parquet")  # and it can be written and printed


def test_a_folder_that_may_not_be_listed(celebdf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_scandir = os.scandir

    def scandir(path: Path):
        if Path(path).name == "Celeb-synthesis":
            raise PermissionError(13, "Permission denied")
        return real_scandir(path)

    (celebdf / "Celeb-synthesis").mkdir()
    monkeypatch.setattr(os, "scandir", scandir)
    assert reasons(celebdf) == {"Celeb-synthesis": "cannot be listed (Permission denied)"}


def test_nothing_found_and_the_cause_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def scandir(path: Path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=r"no Celeb-DF-v2 video found.*cannot be listed \(Permission denied\)"):
        read_dataset("celebdf", tmp_path)


def test_clips_that_cannot_be_named_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader from elsewhere may hand out anything."""

    def clip(name: str, group: str = "g") -> Clip:
        return Clip("other", "M", name, 1, "train", group, "", "", {"raw": f"{name}.mp4"})

    clips = [clip("good"), clip("my clip"), clip("x" * MAX_NAME), clip("y", "g" * 151)]
    entry = base.Dataset("other", lambda root: Catalog("other", root, clips), "Other", False, str)
    monkeypatch.setattr(base, "find_dataset", lambda name: entry)
    catalog = read_dataset("other", tmp_path)
    assert [c.name for c in catalog.clips] == ["good"]
    ignored = dict(catalog.ignored)
    assert ignored["my clip.mp4"] == "name 'my clip'; expected letters, digits, _ and - only"
    assert "at most 150 fit" in ignored["x" * MAX_NAME + ".mp4"] and "its group has 151" in ignored["y.mp4"]
    clips[:] = [clip("my clip")]
    with pytest.raises(UserError, match=r"no clip of the other dataset can be used; my clip\.mp4: name 'my clip'"):
        read_dataset("other", tmp_path)


def test_words() -> None:
    assert word("a b/c..d") == "a-b-c-d" and word("__x__") == "__x__" and word("ü") == ""
