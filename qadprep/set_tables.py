"""What merge, split, diff and cat print for people."""

import json
from typing import Any

from qadprep.diff_report import DiffReport
from qadprep.terminal import print_table, say


def merge(result: dict[str, Any]) -> None:
    """Tuples per split and what was skipped."""
    print_table("tuples in the merged set", ["split", "tuples"], list(result["tuples"].items()))
    if result["duplicates_skipped"]:
        say(f"{result['duplicates_skipped']} tuples were in an earlier set already and were skipped")
    _crossing(result)
    sources = len(result["sources"])
    say(f"{sources} sets -> {result['shards']} shards, {result['bytes'] / 1e6:.1f} MB in {result['out']}")


def split(result: dict[str, Any]) -> None:
    """A row a set."""
    names = list(dict.fromkeys(name for made in result["sets"] for name in made["tuples"]))
    rows = [
        (made["name"], *(made["tuples"].get(name, 0) for name in names), made["shards"], f"{made['bytes'] / 1e6:.1f}")
        for made in result["sets"]
    ]
    print_table("tuples in the new sets", ["set", *names, "shards", "MB"], rows)
    if len(result["sets"]) == 1:
        _crossing(result["sets"][0])
    say(f"{result['tuples']} tuples in {', '.join(made['out'] for made in result['sets'][:3])}"
        + (" ..." if len(result["sets"]) > 3 else ""))  # fmt: skip


def diff(report: DiffReport) -> None:
    """What differs, then that both are equal or not."""
    if report.settings:
        print_table("settings", ["setting", "A", "B"], report.settings)
    rows = [
        ("only in A", report.only_in_a, _some(report, "only_in_a")),
        ("only in B", report.only_in_b, _some(report, "only_in_b")),
        *((f"pixels of {name}", count, "") for name, count in report.pixels.items()),
        *((f"index: {name}", count, _some(report, name)) for name, count in report.columns.items()),
        *((f"JSON: {name}", count, _some(report, f"json_{name}")) for name, count in report.facts.items()),
        ("another place in the order", report.moved or 0, _some(report, "moved")),
        ("cannot be read", report.damaged, ""),
    ]
    rows = [row for row in rows if row[1]]
    if rows:
        print_table(f"{report.common} tuples are in both", ["what differs", "tuples", "such as"], rows)
    if report.shown:
        print_table(
            "how far pixels differ",
            ["key", "quality", "mean", "max", "PSNR, dB"],
            [
                (row["key"], row["quality"], f"{row['mean_abs']:.3f}", row["max_abs"], f"{row['psnr_db']:.1f}")
                for row in report.shown
            ],
        )
    if report.faults:
        print_table("cannot be read", ["set", "key", "fault"], report.faults)
    lacking: dict[str, list[str]] = {}
    for name, side in report.missing_columns:
        lacking.setdefault(name, []).append(side)
    for sides in dict.fromkeys(tuple(sides) for sides in lacking.values()):
        names = ", ".join(name for name, of in lacking.items() if tuple(of) == sides)
        say(f"not compared, since the index of {' and of '.join(sides)} does not tell it: {names}")
    if report.equal:
        say(f"equal: {report.common} tuples, pixel for pixel" + ("" if report.moved is None else ", in the same order"))
    else:
        say("different")


def cat(result: dict[str, Any]) -> None:
    """The tuple's facts."""
    place = f"{result['shard']}, {result['length']} bytes at {result['offset']}"
    rows = [("position", result["position"]), ("shard", place)]
    # As JSON: what stands in a file from elsewhere cannot write to the terminal.
    rows += [(name, json.dumps(value)) for name, value in sorted(result["facts"].items()) if name != "key"]
    print_table(json.dumps(result["key"])[1:-1], ["what", "value"], [(name, str(value)) for name, value in rows])
    print_table(
        "qualities",
        ["quality", "bytes", "PSNR, dB", "sha256 of the pixels"],
        [
            (name, part["bytes"], _psnr(part["psnr_db"]), part["pixels_sha256"] or "-")
            for name, part in result["qualities"].items()
        ],
    )
    if result["picture"]:
        say(f"picture: {result['picture']}")


def _crossing(result: dict[str, Any]) -> None:
    if result["groups_in_several_splits"]:
        say(f"{result['groups_in_several_splits']} recordings are in more than one split")


def _some(report: DiffReport, what: str) -> str:
    keys = report.examples.get(what, [])
    return ", ".join(keys[:2]) + (", ..." if len(keys) > 2 else "")


def _psnr(value: float | str | None) -> str:
    return "-" if value is None else value if isinstance(value, str) else f"{value:.1f}"
