import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qadprep.ustar import TarWriter, atomic_file, member_header, remove_leftovers

names = st.from_regex(r"[A-Za-z0-9_-]{1,40}(/[A-Za-z0-9_-]{1,40}){0,3}\.[a-z0-9]{1,5}\.png", fullmatch=True)


@given(st.dictionaries(names, st.binary(max_size=2000), min_size=1, max_size=8))
def test_pythons_tarfile_reads_what_was_written(members: dict[str, bytes]) -> None:
    buffer = io.BytesIO()
    writer = TarWriter(buffer)
    places = {name: writer.add(name, data) for name, data in members.items()}
    writer.finish()
    data = buffer.getvalue()
    assert len(data) % tarfile.RECORDSIZE == 0
    for name, (offset, size) in places.items():
        assert data[offset : offset + size] == members[name]
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getnames() == list(members)
        for member in tar.getmembers():
            assert tar.extractfile(member).read() == members[member.name]
            assert (member.mtime, member.uid, member.uname, member.mode) == (0, 0, "", 0o644)
            assert member.offset_data == places[member.name][0]


@given(names, st.integers(0, 8**11 - 1))
def test_headers_are_those_of_pythons_tarfile(name: str, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o644, 0
    assert member_header(name, size) == info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")


def test_a_name_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="too long"):
        TarWriter(io.BytesIO()).add("x" * 300, b"")


def test_atomic_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_file(tmp_path / "a.tar") as file:
        file.write(b"half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with atomic_file(tmp_path / "a.tar") as file:
        file.write(b"whole")
        assert not (tmp_path / "a.tar").exists()
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("a.tar", b"whole")]


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".a.tar.123.tmp").touch()
    (tmp_path / "a.tar").touch()
    assert remove_leftovers(tmp_path) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["a.tar"]
    assert remove_leftovers(tmp_path / "nope") == 0
