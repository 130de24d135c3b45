"""The evaluation under corruptions: figures, resolutions, clips, resume, files."""

import csv
import json
import math
import shutil
from io import StringIO
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from helpers.training import quiet_fit, tiny
from rich.console import Console
from safetensors.torch import load_file, save_file
from sklearn.metrics import accuracy_score, roc_auc_score

import qadtrain.robustness as module
from qadprep.errors import UserError
from qadprep.shardset import ShardSet
from qadtrain.checkpoint import checkpoint_path
from qadtrain.corruption_codecs import jpeg, video
from qadtrain.corruptions import corrupt, picture_seed
from qadtrain.data import open_split, to_network_input
from qadtrain.evaluate import evaluate, load_run
from qadtrain.robustness import evaluate_robustness, robustness_tables
from qadtrain.robustness_pictures import CorruptedTuples, View, chosen_rows, clips, load, shown
from qadtrain.robustness_plots import figure

QUALITIES = ("raw", "c23", "c40")
CPU = torch.device("cpu")
QUIET = {"device": "cpu", "num_workers": 0}


@pytest.fixture(scope="module")
def run(shards_dir, tmp_path_factory) -> Path:
    """One epoch of the tiny network, on 32 px."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("robust") / "plain"
    quiet_fit(shards_dir, folder, tiny("optim.epochs=1", "optim.head_only_epochs=0", "awp.gamma=0"))
    return folder


@pytest.fixture(scope="module")
def other(run, tmp_path_factory) -> Path:
    """The same network under another configuration: 48 px and ImageNet statistics."""
    folder = tmp_path_factory.mktemp("robust") / "large"
    shutil.copytree(run, folder)
    text = (folder / "config.toml").read_text()
    text = text.replace("image_size_px = 32", "image_size_px = 48").replace('"half"', '"imagenet"')
    assert "image_size_px = 48" in text and '"half"' not in text
    (folder / "config.toml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def both(run, other, shards_dir, tmp_path_factory):
    """Two runs, two corruptions, two severities."""
    out = tmp_path_factory.mktemp("out")
    return evaluate_robustness(
        [run, other], shards_dir, out_dir=out, corruptions=["blur", "noise"], severities=[4, 1], **QUIET
    )


def test_figures_are_those_of_the_corrupted_pictures_put_through_the_run_by_hand(both, run, other, shards_dir):
    shards = ShardSet(shards_dir, "test")
    labels = shards.table["label"].to_numpy()
    names = shards.table.select(["dataset", "method", "video", "face"]).to_pylist()
    videos = ["/".join(map(str, name.values())) for name in names]
    for folder, size_px, scale in ((run, 32, "half"), (other, 48, "imagenet")):
        model = load_run(folder, "best")[1]
        for name, severity in (("blur", 4), ("noise", 1)):
            pictures = torch.from_numpy(
                np.stack([[shards[n].images[quality] for quality in QUALITIES] for n in range(len(shards))])
            )
            seeds = torch.tensor([picture_seed(0, name, key) for key in shards.table["key"].to_pylist()])
            for number, quality in enumerate(QUALITIES):
                hurt = corrupt(pictures[:, number].permute(0, 3, 1, 2), name, severity, seeds).permute(0, 2, 3, 1)
                pixels = to_network_input(hurt[:, None], None, size_px=size_px, normalization=scale, device=CPU)
                with torch.inference_mode():
                    prob = model(pixels).logits.double().softmax(dim=1)[:, 1].numpy()
                row = both.row(folder.name, name, severity, quality)
                assert row.auc == pytest.approx(roc_auc_score(labels, prob), abs=1e-6)
                assert row.accuracy == pytest.approx(accuracy_score(labels, prob > 0.5))
                assert (row.real, row.fake) == (16, 16)
                means, truth = {}, dict(zip(videos, labels, strict=True))
                for one in truth:
                    means[one] = prob[[v == one for v in videos]].mean()
                row = both.row(folder.name, name, severity, quality, "video")
                auc = roc_auc_score([truth[v] for v in means], list(means.values()))
                assert row.auc == pytest.approx(auc, abs=1e-6)
    assert {row.parameter for row in both.rows if row.corruption == "noise"} == {0.001, 0.01}


def test_the_clean_row_is_that_of_eval_and_averages_are_means(both, run, shards_dir, tmp_path):
    report, _, _ = evaluate(run, shards_dir, out_dir=tmp_path, bootstrap=0, **QUIET)
    for level in ("frame", "video"):
        for quality in (*QUALITIES, "average"):
            told, row = report.cells[level][quality]["all"], both.row("plain", "blur", 0, quality, level)
            assert (row.auc, row.accuracy, row.real, row.fake) == (told.auc, told.accuracy, told.real, told.fake)
    mean = np.mean([both.row("plain", "noise", 4, quality).auc for quality in QUALITIES])
    assert both.row("plain", "noise", 4).auc == pytest.approx(mean)
    assert both.row("plain", "blur", 0) == both.row("plain", "noise", 0)
    with pytest.raises(KeyError):
        both.row("plain", "blur", 2)


def test_files_hold_every_row_and_are_the_same_again(both, run, other, shards_dir):
    folder = both.folder
    assert [path.name for path in both.files] == [f"robustness.{kind}" for kind in ("csv", "json", "png", "svg")]
    with (folder / "robustness.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    # 2 runs x (clean + 2 x 2) x 2 levels x (3 qualities + average)
    assert len(table) == len(both.rows) == 80
    found = next(r for r in table if (r["run"], r["corruption"], r["severity"]) == ("large", "noise", "4"))
    assert float(found["auc"]) == both.row("large", "noise", 4, "raw").auc and found["parameter"] == "0.01"
    contents = json.loads((folder / "robustness.json").read_text())
    assert contents["settings"]["at"] == "crop" and contents["settings"]["blocks"] == "scaled"
    assert contents["settings"]["side_px"] == {"plain": 32, "large": 32}
    assert len(contents["rows"]) == 80 and contents["tuples"] == 32 and contents["damaged"] == []
    assert contents["severities"] == [1, 4] and contents["corruptions"] == ["noise", "blur"]

    before = {path: path.read_bytes() for path in both.files}
    again = evaluate_robustness(
        [run, other], shards_dir, out_dir=folder, corruptions=["GB", "GNC"], severities=[1, 4], **QUIET
    )
    assert (again.reused, again.scored) == (10, 0)
    assert again.rows == both.rows
    for path, data in before.items():
        assert path.read_bytes() == data

    image = cv2.imread(str(folder / "robustness.png"))
    assert image.shape[0] > 600 and (image < 250).any()
    svg = (folder / "robustness.svg").read_text()
    assert svg.count('id="axes_') == 4 * 3  # qualities and mean x corruptions and mean
    assert "<dc:date>" not in svg
    assert "corrupted at 32 px (--at crop), blocks: scaled" in svg


def test_curves_are_the_rows_in_percent(both, monkeypatch):
    drawn = []
    monkeypatch.setattr("qadtrain.robustness_plots.picture_files", lambda sheet, **_options: drawn.append(sheet) or {})
    for level in ("frame", "video"):
        figure(both, level)
        for row, quality in enumerate((*QUALITIES, "average")):
            for number, run in enumerate(("plain", "large")):
                every = [[100 * both.row(run, c, s, quality, level).auc for s in (0, 1, 4)] for c in ("noise", "blur")]
                for column, wanted in enumerate((*every, np.mean(every, axis=0))):
                    line = drawn[-1].axes[3 * row + column].lines[number]
                    assert line.get_label() == run and list(line.get_xdata()) == [0, 1, 4]
                    assert list(line.get_ydata()) == pytest.approx(list(wanted))


def test_tables_show_percent_for_each_severity(both):
    tables = list(robustness_tables(both))
    assert len(tables) == 4
    for table, level in zip(tables, ("frame", "video", "frame", "video"), strict=True):
        text = StringIO()
        Console(file=text, width=100).print(table)
        line = next(line for line in text.getvalue().splitlines() if line.strip().startswith("noise"))
        run = "plain" if table in tables[:2] else "large"
        expected = [f"{100 * both.row(run, 'noise', severity, level=level).auc:.2f}" for severity in (0, 1, 4)]
        assert line.split() == ["noise", "AUC", *expected] and f"{run}: {level} level" in text.getvalue()


@pytest.fixture
def no_figure(monkeypatch):
    """Drawing takes longer than scoring."""
    monkeypatch.setattr("qadtrain.robustness_report.figure", lambda report: {})


def test_at_the_input_pictures_are_resized_before_they_are_corrupted(other, shards_dir, tmp_path, no_figure):
    report = evaluate_robustness(
        [other],
        shards_dir,
        out_dir=tmp_path,
        corruptions=["blur"],
        severities=[1],
        at="input",
        qualities=["raw"],
        **QUIET,
    )
    shards = ShardSet(shards_dir, "test")
    pictures = torch.from_numpy(np.stack([shards[n].images["raw"] for n in range(len(shards))])).permute(0, 3, 1, 2)
    larger = torch.nn.functional.interpolate(pictures.float(), (48, 48), mode="bilinear", antialias=True)
    hurt = corrupt((larger + 0.5).to(torch.uint8), "blur", 1).permute(0, 2, 3, 1)
    pixels = to_network_input(hurt[:, None], None, size_px=48, normalization="imagenet", device=CPU)
    with torch.inference_mode():
        margin = load_run(other, "best")[1](pixels).logits.double() @ torch.tensor([-1.0, 1.0], dtype=torch.float64)
    expected = roc_auc_score(shards.table["label"].to_numpy(), margin.numpy())
    assert report.row("large", "blur", 1, "raw").auc == pytest.approx(expected, abs=1e-6)
    assert report.corrupted_at == "corrupted at 48 px (--at input), blocks: scaled"


def test_only_missing_cells_are_scored_and_other_weights_or_settings_are_not_mixed_up(
    run, shards_dir, tmp_path, monkeypatch, no_figure
):
    mine = tmp_path / "mine"
    shutil.copytree(run, mine)
    scored = []
    original = CorruptedTuples.__init__

    def counting(self, shards, rows, qualities, view) -> None:
        scored.append((view.corruption, view.severity))
        original(self, shards, rows, qualities, view)

    monkeypatch.setattr(CorruptedTuples, "__init__", counting)

    def call(**options):
        scored.clear()
        default = {"corruptions": ["blocks"], "severities": [1, 5], "limit": 8, "qualities": ["raw"]}
        evaluate_robustness([mine], shards_dir, out_dir=tmp_path / "out", **QUIET, **(default | options))
        return list(scored)

    assert call() == [("clean", 0), ("blocks", 1), ("blocks", 5)]
    assert call() == []
    assert call(severities=[1, 3, 5]) == [("blocks", 3)]
    # The seed means nothing to clean pictures and to contrast, nor the rule of the blocks.
    assert call(seed=1) == [("blocks", 1), ("blocks", 5)]
    assert call(blocks="original") == [("blocks", 1), ("blocks", 5)]
    assert call(at="256") == [("clean", 0), ("blocks", 1), ("blocks", 5)]
    assert call(limit=9) == [("clean", 0), ("blocks", 1), ("blocks", 5)]
    kept = next((tmp_path / "out" / "cells").glob("mine-clean-0-*"))
    kept.write_bytes(kept.read_bytes()[:100])
    damaged = call(limit=9), call(limit=8), call(at="256")
    assert sorted(map(len, damaged)) == [0, 0, 1]
    weights = checkpoint_path(mine, "best")
    save_file({key: value * 1.01 for key, value in load_file(weights).items()}, weights)
    assert call() == [("clean", 0), ("blocks", 1), ("blocks", 5)]
    settings = (mine / "config.toml").read_text()
    for old, new in (('"half"', '"imagenet"'), ("image_size_px = 32", "image_size_px = 48")):
        assert old in settings
        (mine / "config.toml").write_text(settings.replace(old, new))
        assert call() == [("clean", 0), ("blocks", 1), ("blocks", 5)]


def test_a_killed_evaluation_goes_on_where_it_was(run, shards_dir, tmp_path, monkeypatch, no_figure):
    scores, calls = module._scores, []

    def stops(*arguments, **options):
        calls.append(0)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return scores(*arguments, **options)

    monkeypatch.setattr(module, "_scores", stops)
    options = {"corruptions": ["contrast"], "severities": [1, 2, 3], "limit": 8} | QUIET
    with pytest.raises(KeyboardInterrupt):
        evaluate_robustness([run], shards_dir, out_dir=tmp_path, **options)
    report = evaluate_robustness([run], shards_dir, out_dir=tmp_path, **options)
    assert (report.reused, report.scored, len(calls)) == (2, 2, 5)
    straight = evaluate_robustness([run], shards_dir, out_dir=tmp_path / "straight", **options)
    assert report.rows == straight.rows


def test_neither_workers_nor_batches_change_the_pictures(shards_dir):
    shards = ShardSet(shards_dir, "test")
    rows = np.arange(10)
    keys = shards.table["key"].to_pylist()
    for name in ("noise", "video"):
        view = View(name, 2, side_px=40)
        results = []
        for batch, workers in ((3, 0), (10, 1)):
            dataset = CorruptedTuples(shards, rows, ("c23", "raw"), view)
            found = {}
            for got, images, damaged in load(dataset, batch_tuples=batch, num_workers=workers, device=CPU):
                assert not damaged
                pictures = shown(images, [keys[row] for row in got], view, CPU)
                found |= dict(zip(got.tolist(), pictures.numpy(), strict=True))
            results.append(found)
        assert sorted(results[0]) == sorted(results[1]) == list(range(10))
        for row in range(10):
            assert results[0][row].shape == (2, 40, 40, 3)
            np.testing.assert_array_equal(results[0][row], results[1][row])


def test_where_pictures_are_corrupted(shards_dir):
    shards = ShardSet(shards_dir, "test")
    tuples = torch.from_numpy(np.stack([list(shards[n].images.values()) for n in (3, 4)]))
    flat = tuples.flatten(0, 1).permute(0, 3, 1, 2)
    keys = [shards[n].key for n in (3, 4)]
    assert shown(tuples, keys, View("clean", 0), CPU) is tuples
    larger = torch.nn.functional.interpolate(flat.double(), (256, 256), mode="bilinear", antialias=True)
    clean = shown(tuples, keys, View("clean", 0, side_px=256), CPU)
    assert clean.shape == (2, 3, 256, 256, 3)
    assert (clean.flatten(0, 1).permute(0, 3, 1, 2) - larger).abs().max() <= 0.501
    # At 256 px the original's rule draws blocks; at 32 px none.
    blocks = View("blocks", 5, blocks="original")
    assert torch.equal(shown(tuples, keys, blocks, CPU), tuples)
    hurt = shown(tuples, keys, View("blocks", 5, side_px=256, blocks="original"), CPU)
    changed = (hurt != clean).any(dim=-1)
    assert 0.04 < changed.float().mean() < 80 * 64 / 256**2
    # All qualities of a tuple lose the same places, another tuple loses others.
    greys = (hurt == 128).all(dim=-1)
    assert ((greys[:, 0] & greys[:, 1]).sum((1, 2)) > 0.9 * greys[:, 0].sum((1, 2))).all()
    assert (greys[0, 0] != greys[1, 0]).any()


def table(films: dict[str, int]) -> pa.Table:
    """An index of so many frames of each video, in the order frame by frame."""
    rows = [
        {"dataset": "d", "method": name.split("/")[0], "video": name.split("/")[1], "face": 0, "frame": 10 * number}
        for number in range(max(films.values()))
        for name, count in films.items()
        if number < count
    ]
    return pa.Table.from_pylist(rows)


def test_a_limit_is_spread_evenly_over_videos_and_time():
    index = table({"original/a": 20, "original/b": 3, "X/c": 20})
    rows = chosen_rows(index, 15)
    taken = index.take(rows).to_pylist()
    frames = {video: [row["frame"] // 10 for row in taken if row["video"] == video] for video in ("a", "b", "c")}
    assert frames == {"a": [1, 5, 8, 11, 15, 18], "b": [0, 1, 2], "c": [1, 5, 8, 11, 15, 18]}
    assert sorted(rows.tolist()) == rows.tolist()
    # Fewer than videos: one frame each of some, and one more where it does not go up.
    assert len({(row["method"], row["video"]) for row in index.take(chosen_rows(index, 2)).to_pylist()}) == 2
    assert len(chosen_rows(index, 14)) == 14
    for limit in (None, 43, 1000):
        assert chosen_rows(index, limit).tolist() == list(range(43))
    with pytest.raises(UserError, match="--limit: got 0, expected at least 1 tuple"):
        chosen_rows(index, 0)


def test_clips_are_neighbouring_frames_in_order_of_time():
    index = table({"original/a": 11, "X/a": 1})
    found = [[(row["method"], row["frame"]) for row in index.take(pa.array(unit)).to_pylist()] for unit in clips(index)]
    assert found == [
        [("X", 0)],
        [("original", 10 * number) for number in range(8)],
        [("original", 10 * number) for number in range(8, 11)],
    ]


def test_a_tuple_in_a_clip_does_not_depend_on_which_others_are_scored(shards_dir):
    shards = ShardSet(shards_dir, "test")
    unit = clips(shards.table)[0]
    assert len(unit) > 1
    frames = np.stack([shards[int(row)].images["c23"] for row in unit])
    view = View("video", 3)
    dataset = CorruptedTuples(shards, unit[1:2], ("c23",), view)
    [(row, images)] = dataset[0]
    assert row == unit[1]
    np.testing.assert_array_equal(images[0], video(frames, 35)[1])
    still = CorruptedTuples(shards, unit[:1], ("raw",), View("jpeg", 3))
    np.testing.assert_array_equal(still[0][0][1][0], jpeg(shards[int(unit[0])].images["raw"], 50))


def test_damaged_tuples_are_left_out_of_every_cell_and_named(run, shards_dir, tmp_path, no_figure):
    broken = tmp_path / "broken"
    shutil.copytree(shards_dir, broken)
    index = pq.read_table(broken / "test-000000.parquet").to_pylist()
    hurt = index[5]
    data = bytearray((broken / "test-000000.tar").read_bytes())
    start = hurt["c23_offset"] + 60
    data[start : start + 40] = bytes(40)
    (broken / "test-000000.tar").write_bytes(data)
    options = {"out_dir": tmp_path / "out", "corruptions": ["contrast", "video"], "severities": [1]} | QUIET
    report = evaluate_robustness([run], broken, **options)
    assert report.tuples == 31
    [(key, message)] = report.damaged
    assert key == hurt["key"] and "c23" in message and "qadprep verify" in message
    assert {row.real + row.fake for row in report.rows if row.level == "frame" and row.quality == "raw"} == {31}
    assert evaluate_robustness([run], broken, **options).reused == 3
    # Repaired, it is scored.
    shutil.copy(shards_dir / "test-000000.tar", broken)
    report = evaluate_robustness([run], broken, **options)
    assert (report.tuples, report.damaged, report.reused) == (32, (), 0)


def test_one_class_alone_has_no_auc_and_says_so(run, make_shards, tmp_path):
    real = make_shards(tmp_path / "real", {"test": 8}, labels=(0,))
    report = evaluate_robustness(
        [run], real, out_dir=tmp_path / "out", corruptions=["contrast"], severities=[5], qualities=["c40"], **QUIET
    )
    row = report.row("plain", "contrast", 5, "c40")
    assert math.isnan(row.auc) and row.reason == "no fake samples" and 0 <= row.accuracy <= 1
    rows = json.loads((tmp_path / "out" / "robustness.json").read_text())["rows"]
    assert rows[0]["auc"] is None and rows[0]["reason"] == "no fake samples"
    assert figure(report, "video")["png"].startswith(b"\x89PNG")


def test_wrong_use_is_said_before_anything_is_scored(run, shards_dir, tmp_path):
    def message(runs, **options) -> str:
        with pytest.raises(UserError) as caught:
            evaluate_robustness(runs, shards_dir, out_dir=tmp_path / "out", **QUIET, **options)
        return str(caught.value)

    assert "expected at least one run folder" in message([])
    assert "expected each run once" in message([run, run])
    assert "not a run folder" in message([run, tmp_path])
    assert message([run], at="500") == "--at: got '500', expected crop, input or 256"
    assert message([run], blocks="no") == "--blocks: got 'no', expected original or scaled"
    assert message([run], checkpoint="x") == "--checkpoint: got 'x', expected best or last"
    assert message([run], severities=[0, 1]) == "--severities: got [0, 1], expected some of 1 to 5"
    assert "got 'fog'" in message([run], corruptions=["fog"])
    assert "c15" in message([run], qualities=["c15"])
    assert "no split 'dev'" in message([run], split="dev")
    assert not (tmp_path / "out").exists()


def test_runs_of_one_name_are_told_apart(run, shards_dir, tmp_path, no_figure):
    twin = tmp_path / "plain"
    shutil.copytree(run, twin)
    report = evaluate_robustness(
        [run, twin], shards_dir, out_dir=tmp_path / "out", corruptions=["contrast"], severities=[1], limit=6, **QUIET
    )
    assert report.runs == (str(run), str(twin))
    assert report.row(str(run), "contrast", 1).auc == report.row(str(twin), "contrast", 1).auc


def test_weights_that_change_on_the_way_are_not_scored_under_the_old_name(
    run, shards_dir, tmp_path, monkeypatch, no_figure
):
    mine = tmp_path / "mine"
    shutil.copytree(run, mine)
    weights = checkpoint_path(mine, "best")

    def trained_meanwhile(*arguments, **options):
        save_file({key: value * 1.01 for key, value in load_file(weights).items()}, weights)
        return open_split(*arguments, **options)

    monkeypatch.setattr(module, "open_split", trained_meanwhile)
    options = {"corruptions": ["contrast"], "severities": [1], "limit": 4} | QUIET
    with pytest.raises(UserError, match=r"mine: its checkpoint best was replaced meanwhile; give the command again"):
        evaluate_robustness([mine], shards_dir, out_dir=tmp_path / "out", **options)
    assert not list((tmp_path / "out" / "cells").iterdir())


def test_a_run_with_brackets_in_its_name_keeps_them_in_the_table(run, shards_dir, tmp_path, no_figure):
    odd = tmp_path / "qad[red]"
    shutil.copytree(run, odd)
    options = {"corruptions": ["contrast"], "severities": [1], "limit": 4} | QUIET
    report = evaluate_robustness([odd], shards_dir, out_dir=tmp_path / "out", **options)
    text = StringIO()
    Console(file=text, width=100).print(next(robustness_tables(report)))
    assert "qad[red]: frame level" in text.getvalue() and "corrupted at 32 px (--at crop)" in text.getvalue()
