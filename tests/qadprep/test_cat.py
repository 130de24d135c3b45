import json
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers.rewritten import rewrite

from qadprep.cat import MAX_CANDIDATES, _candidates, cat
from qadprep.cli import main
from qadprep.errors import UserError
from qadprep.shardset import ShardSet
from qadprep.sheets import DIFFERENCE_GAIN, GAP_PX, LINE_PX

KEY = "ffpp/Deepfakes/001_901/000020_0"


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return ended.value.code or 0


def member(folder: Path, name: str) -> bytes:
    """A member as Python's tarfile reads it."""
    for tar in sorted(folder.glob("*.tar")):
        with tarfile.open(tar) as file:
            if name in file.getnames():
                return file.extractfile(name).read()
    raise AssertionError(name)


def test_facts_are_those_in_the_tar(made_shards_master: Path) -> None:
    result = cat(made_shards_master, KEY)
    assert result["facts"] == json.loads(member(made_shards_master, f"{KEY}.json"))
    assert result["facts"]["label"] == 1 and result["key"] == KEY and result["picture"] is None
    for quality, part in result["qualities"].items():
        assert part["bytes"] == len(member(made_shards_master, f"{KEY}.{quality}.png"))
    assert result["qualities"]["raw"]["psnr_db"] == "equal" and 10 < result["qualities"]["c40"]["psnr_db"] < 60
    with ShardSet(made_shards_master) as shards:
        assert shards[result["position"]].key == KEY
        assert shards.table["offset"][result["position"]].as_py() == result["offset"]
    shard = (made_shards_master / result["shard"]).read_bytes()
    assert shard[result["offset"] :].startswith(f"{KEY}.raw.png".encode())


def test_a_position_names_a_tuple(made_shards_master: Path) -> None:
    with ShardSet(made_shards_master) as shards:
        keys = shards.table["key"].to_pylist()
    for name, key in (("0", keys[0]), ("37", keys[37]), ("-1", keys[-1])):
        assert cat(made_shards_master, name)["key"] == key
    with pytest.raises(UserError, match="no tuple 60; it has 60, counted from 0"):
        cat(made_shards_master, "60")


def test_the_picture_holds_the_pixels(made_shards_master: Path, tmp_path: Path) -> None:
    scale, side = 3, 72
    cat(made_shards_master, KEY, out=tmp_path / "tuple.png", scale=scale)
    sheet = cv2.imread(str(tmp_path / "tuple.png"), cv2.IMREAD_COLOR_RGB)
    with ShardSet(made_shards_master) as shards:
        images = {name: image.astype(int) for name, image in shards.by_key(KEY).images.items()}
    lefts = [
        left for left in range(sheet.shape[1] - side) if _is(sheet, GAP_PX + 2 * LINE_PX, left, images["raw"], scale)
    ]
    assert lefts == [GAP_PX]
    step = next(
        left
        for left in range(GAP_PX + 1, sheet.shape[1])
        if _is(sheet, GAP_PX + 2 * LINE_PX, left, images["c23"], scale)
    ) - GAP_PX  # fmt: skip
    assert step >= side
    below = GAP_PX + 2 * LINE_PX + side + GAP_PX + LINE_PX
    for column, name in enumerate(("raw", "c23", "c40")):
        assert _is(sheet, GAP_PX + 2 * LINE_PX, GAP_PX + column * step, images[name], scale)
        if column:
            lost = np.clip(DIFFERENCE_GAIN * np.abs(images["raw"] - images[name]), 0, 255)
            assert lost.any() and _is(sheet, below, GAP_PX + column * step, lost, scale)


def _is(sheet: np.ndarray, top: int, left: int, image: np.ndarray, scale: int) -> bool:
    """Whether an enlarged picture lies at a place of the sheet."""
    part = sheet[top : top + scale * image.shape[0], left : left + scale * image.shape[1]]
    return part.shape[:2] == (scale * image.shape[0], scale * image.shape[1]) and np.array_equal(
        part, np.kron(image, np.ones((scale, scale, 1), int))
    )


def test_old_sets_and_other_codecs(made_shards_master: Path, tmp_path: Path) -> None:
    old = rewrite(
        made_shards_master,
        tmp_path / "old",
        codec="webp",
        without=("json_offset", "json_size", "sha256", "c23_pixels_sha256", "c40_psnr_db"),
    )
    result = cat(old, KEY)
    assert result["facts"] == json.loads(member(made_shards_master, f"{KEY}.json"))
    assert result["sha256"] is None and result["qualities"]["c23"]["pixels_sha256"] is None
    assert result["qualities"]["c40"]["psnr_db"] is None


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [
        ("ffpp/Deepfakes/001_901/000021_0", "ffpp/Deepfakes/001_901/0000"),
        ("ffpp/Deepfake/001_901/000020_0", KEY),
        ("001_901", "/001_901/"),
        ("nothing of the kind", "ffpp/"),
    ],
)
def test_an_unknown_key_gets_near_ones(asked: str, nearest: str, made_shards_master: Path) -> None:
    with pytest.raises(UserError) as caught:
        cat(made_shards_master, asked)
    message = str(caught.value)
    assert f"no tuple {asked!r}; nearest: " in message and "\n" not in message
    first = message.split("nearest: ")[1].split(", ")
    assert nearest in first[0] and len(first) == 3
    with ShardSet(made_shards_master) as shards:
        assert set(first) <= set(shards.table["key"].to_pylist())


def test_the_candidates_are_few() -> None:
    import pyarrow as pa

    keys = pa.chunked_array([[f"a/b/{clip:05d}/{frame:06d}_0" for frame in range(10)] for clip in range(1000)])
    assert 1000 <= len(_candidates(keys, "x/y")) <= MAX_CANDIDATES
    assert _candidates(keys, "a/b/00007/x") == [f"a/b/00007/{frame:06d}_0" for frame in range(10)]
    assert _candidates(pa.chunked_array([pa.array([], pa.string())]), "x") == []


def test_what_is_wrong_is_said(made_set: Path, tmp_path: Path) -> None:
    for settings, words in (
        ({"scale": 0}, "--scale: got 0; expected 1 to 16"),
        ({"out": tmp_path / "x.jpg"}, "expected a name that ends in .png"),
    ):
        with pytest.raises(UserError, match=words):
            cat(made_set, KEY, **settings)
    place = cat(made_set, KEY)
    tar = made_set / place["shard"]
    data = bytearray(tar.read_bytes())
    start = data.index(f"{KEY}.json".encode())
    data[start + 512 : start + 514] = b"[["
    tar.write_bytes(data)
    with pytest.raises(UserError, match=rf"{KEY} at byte {place['offset']}: no readable {KEY}\.json"):
        cat(made_set, KEY)
    data[start : start + 4] = b"evil"
    tar.write_bytes(data)
    with pytest.raises(UserError, match="no readable"):
        cat(made_set, KEY)
    tar.write_bytes(data[: place["offset"] + 600])
    with pytest.raises(UserError, match="cut short"):
        cat(made_set, KEY)


def test_command(made_shards_master: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run("cat", made_shards_master, KEY, "--out", tmp_path / "t.png", "--scale", 4) == 0
    printed = capsys.readouterr()
    assert KEY in printed.out and "box_xyxy" in printed.out and "t.png" in printed.err
    assert cv2.imread(str(tmp_path / "t.png")).shape[1] >= 3 * 96
    assert run("cat", made_shards_master, "-1", "--json") == 0
    assert json.loads(capsys.readouterr().out)["position"] == 59
    assert run("cat", made_shards_master, "ffpp/x") == 2
    assert "nearest" in capsys.readouterr().err
