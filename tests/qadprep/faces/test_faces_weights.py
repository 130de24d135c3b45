"""Weights files: reading, refusing, and downloading from a server on this machine."""

import hashlib
import http.server
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from qadprep.errors import UserError
from qadprep.faces.weights import (
    RETINAFACE,
    Published,
    cache_folder,
    cached_weights,
    fetch,
    read_state_dict,
    sha256_of,
)

CONTENT = bytes(range(256)) * 9000  # 2.3 MB: more than one chunk
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/missing":
            self.send_error(404)
            return
        self.send_response(200)
        if self.path != "/no-length":
            self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[: len(CONTENT) // 2] if self.path == "/cut" else CONTENT)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("QADPREP_CACHE", str(folder))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return folder


def published(url, prefix=DIGEST[:9]) -> Published:
    return Published(title="test weights", url=url, file_name="some.zip", sha256_prefix=prefix)


def files_in(folder):
    return sorted(path.name for path in folder.rglob("*"))


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("QADPREP_CACHE", str(tmp_path / "x"))
    assert cache_folder() == tmp_path / "x"
    assert cached_weights() == tmp_path / "x" / "retinaface_resnet50_2020-07-20-f168fae3c.zip"
    monkeypatch.delenv("QADPREP_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "qadprep"


def test_the_published_name_url_and_hash_agree():
    assert RETINAFACE.url.endswith("/" + RETINAFACE.file_name)
    assert RETINAFACE.file_name == f"retinaface_resnet50_2020-07-20-{RETINAFACE.sha256_prefix}.zip"


@pytest.mark.parametrize("path", ["/whole", "/no-length"])
def test_download_is_kept_and_not_repeated(server, cache, capsys, path):
    source = published(server + path)
    target = fetch(source)
    assert target == cache / "some.zip"
    assert target.read_bytes() == CONTENT
    assert files_in(cache) == ["some.zip"]
    progress = capsys.readouterr().err
    assert progress.count("\n") == 1 and "test weights" in progress and "2.3 MB" in progress
    assert fetch(replace(source, url=server + "/missing")) == target
    assert sha256_of(target) == DIGEST


def test_download_into_a_cache_that_others_share_is_readable_for_them(server, cache):
    mode = fetch(published(server + "/whole")).stat().st_mode & 0o777
    other = cache / "plain"
    other.touch()
    assert mode == other.stat().st_mode & 0o777


@pytest.mark.parametrize(
    ("path", "prefix", "reason"),
    [
        ("/cut", DIGEST[:9], f"after {len(CONTENT) // 2} of {len(CONTENT)} bytes|IncompleteRead"),
        ("/missing", DIGEST[:9], "404"),
        ("/whole", "000000000", f"expected 000000000..., got {DIGEST}"),
    ],
)
def test_a_failed_download_is_one_line_and_leaves_nothing(server, cache, path, prefix, reason):
    with pytest.raises(UserError, match=reason) as error:
        fetch(published(server + path, prefix))
    message = str(error.value)
    assert "\n" not in message and "test weights" in message and "--weights FILE" in message
    assert files_in(cache) == []


def test_an_interrupt_leaves_nothing(server, cache, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("qadprep.faces.weights._show_progress", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch(published(server + "/whole"))
    assert files_in(cache) == []


def test_no_server_says_where_to_put_the_file(cache):
    with pytest.raises(UserError) as error:
        fetch(published("http://127.0.0.1:9/x"))
    message = str(error.value)
    assert "cannot download test weights from http://127.0.0.1:9/x: " in message
    assert f"--weights FILE or put it at {cache / 'some.zip'}" in message
    assert "\n" not in message


def test_a_cache_that_cannot_be_made_is_one_line(server, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("QADPREP_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match="cannot download test weights"):
        fetch(published(server + "/whole"))


def test_a_damaged_file_in_the_cache_is_refused(cache):
    cache.mkdir()
    (cache / "some.zip").write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match=f"delete {cache / 'some.zip'} to download it anew"):
        fetch(published("http://127.0.0.1:9/x"))


def test_the_hash_of_the_file_in_the_archive_counts_too(cache):
    cache.mkdir()
    with zipfile.ZipFile(cache / "some.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weights.pth", CONTENT)
    assert fetch(published("http://127.0.0.1:9/x")) == cache / "some.zip"


def save(path: Path, content) -> Path:
    torch.save(content, path)
    return path


def zipped(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_reads_a_state_dict_in_all_forms(tmp_path):
    state = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.count": torch.tensor(3)}
    plain = save(tmp_path / "plain.pth", state)
    old = tmp_path / "old.pth"
    torch.save(state, old, _use_new_zipfile_serialization=False)
    safe = tmp_path / "safe.safetensors"
    safetensors.torch.save_file(state, safe)
    archives = [zipped(tmp_path / f"{path.stem}.zip", inner=path.read_bytes()) for path in (plain, old)]
    for path in (plain, old, safe, *archives):
        read = read_state_dict(path)
        assert read.keys() == state.keys()
        assert all(torch.equal(read[name], state[name]) for name in state), path


class Dangerous:
    def __reduce__(self):
        return (Path.touch, (Path("ran"),))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: d / "absent.pth", "absent.pth is not a readable weights file"),
        (lambda d: (d / "e.pth").write_bytes(b"") or d / "e.pth", "not a readable weights file"),
        (lambda d: (d / "g.pth").write_bytes(b"\x93garbage" * 99) and d / "g.pth", "not a readable weights file"),
        (lambda d: (d / "g.safetensors").write_bytes(b"garbage" * 99) and d / "g.safetensors", "not a readable"),
        (lambda d: zipped(d / "two.zip", a=b"1", b=b"2"), "one weights file in it, got 2 files"),
        (lambda d: zipped(d / "none.zip"), "one weights file in it, got 0 files"),
        (lambda d: zipped(d / "bad.zip", a=b"garbage"), "not a readable weights file"),
        (lambda d: save(d / "list.pth", [torch.zeros(1)]), "no state dict: expected names with tensors, got list"),
        (lambda d: save(d / "nest.pth", {"state_dict": {}}), "holds no state dict"),
        (lambda d: save(d / "code.pth", {"x": Dangerous()}), "not a readable weights file"),
    ],
)
def test_refuses_what_is_no_weights_file_in_one_line(tmp_path, monkeypatch, make, message):
    monkeypatch.chdir(tmp_path)
    path = make(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        read_state_dict(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    assert not (tmp_path / "ran").exists()


def test_a_truncated_file_is_refused(tmp_path):
    path = save(tmp_path / "whole.pth", {"a": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UserError, match="not a readable weights file"):
        read_state_dict(path)
