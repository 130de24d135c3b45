"""What the commands after training left on the disk: evaluations, comparisons, robustness, heat maps, theorem terms."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from qadtrain.checkpoint import checkpoint_path
from qadtrain.runs import RunInfo
from qadtrain.safe_files import sha256_of

EVAL, COMPARE, CROSS, ROBUSTNESS = "eval", "compare", "cross", "robustness"
GRADCAM, CONSISTENCY, THEOREM = "gradcam", "consistency", "theorem"
# Kind -> the folder in which its commands are told to write, and the files that speak for it.
_PLACES = {
    EVAL: ("eval", ("report.json",)),
    COMPARE: ("compare", ("*.json",)),
    CROSS: ("cross", ("cross.json",)),
    ROBUSTNESS: ("robustness", ("robustness.json",)),
    GRADCAM: ("gradcam", ("gradcam.json",)),
    CONSISTENCY: ("gradcam", ("consistency.json",)),
    THEOREM: ("theorem", ("theorem.json",)),
}
# Keys that tell the kind from any other JSON file.
_KEYS = {
    EVAL: ("metrics", "qualities", "methods", "shards"),
    COMPARE: ("run_a", "run_b", "rows"),
    CROSS: ("sets", "rows"),
    ROBUSTNESS: ("runs", "corruptions", "rows"),
    GRADCAM: ("runs", "tuples", "qualities"),
    CONSISTENCY: ("runs", "qualities", "control"),
    THEOREM: ("run", "pairs", "temperatures"),
}
_DEPTH = 3  # <kind>/<set>-<split>/file and one folder more
_OURS = "this run"  # as cross marks the rows that are runs

Made = TypeVar("Made")


@dataclass(frozen=True)
class Found:
    """One result.

    Attributes:
        run: name in the page of the run in whose folder it lies; empty for a place of several runs.
        folder: where its files are.
        contents: of its JSON file.
    """

    kind: str
    run: str
    folder: Path
    contents: dict[str, Any]

    @property
    def name(self) -> str:
        """Two parts of the path: enough to find it, without the machine's folders."""
        return "/".join(self.folder.parts[-2:])


@dataclass
class Results:
    """All results that concern the runs of a page, and a line for each that cannot be shown."""

    found: list[Found] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def of(self, kind: str) -> list[Found]:
        return [one for one in self.found if one.kind == kind]

    def careful(self, one: Found, build: Callable[[], Made], instead: Made) -> Made:
        """What ``build`` makes of a result; where its files are not as expected a fault, and ``instead``."""
        try:
            return build()
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OSError) as error:
            reason = f"lacks {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0]
            self.faults.append(f"{one.name}: the result of `{one.kind}` is not as expected ({reason}); make it again")
            return instead


def find_results(runs: Mapping[str, RunInfo], places: Sequence[Path] = ()) -> Results:
    """Look into each run's folder and into further places.

    Args:
        runs: name in the page -> run.
        places: folders with ``compare``, ``cross``, ``robustness``, ``gradcam`` or ``theorem`` in them; of those only
            what names one of the runs is taken.
    """
    results, seen = Results(), set()
    own = {run.path.resolve(): name for name, run in runs.items()}
    for place in dict.fromkeys([*own, *(Path(each).resolve() for each in places)]):
        for kind, (folder, patterns) in _PLACES.items():
            if kind == EVAL and place not in own:
                continue
            for path in _files(place / folder, patterns):
                if (kind, path) in seen:
                    continue
                seen.add((kind, path))
                contents = _read(path, kind, results.faults)
                if contents is not None and (place in own or _concerns(kind, contents, runs)):
                    results.found.append(Found(kind, own.get(place, ""), path.parent, contents))
    return results


def remarks_on_weights(one: Found, runs: Mapping[str, RunInfo]) -> list[str]:
    """A sentence for each run whose checkpoint is no longer the one that the result was made with."""
    contents, lines = one.contents, []
    if one.kind == EVAL:
        note = contents.get("checkpoint", {})
        claimed = {one.run: (note.get("name", "best"), note.get("weights_sha256"))}
    elif one.kind == ROBUSTNESS:
        settings = contents.get("settings", {})
        kept = [(Path(name).name, sha256) for name, sha256 in settings.get("weights", {}).items()]
        ours = [(run.path.resolve().name, name) for name, run in runs.items()]
        # Of two runs with one name it is not known which one is meant.
        alone = {name for name, count in Counter(name for name, _ in kept).items() if count == 1}
        alone &= {name for name, count in Counter(name for name, _ in ours).items() if count == 1}
        by_folder, which = dict(ours), settings.get("checkpoint", "best")
        claimed = {by_folder[name]: (which, sha256) for name, sha256 in kept if name in alone}
    else:
        return []
    for name, (checkpoint, sha256) in claimed.items():
        if sha256 and sha256_of(checkpoint_path(runs[name].path, checkpoint)) not in (sha256, None):
            lines.append(f"{name} was trained further since: these figures are of earlier weights.")
    return lines


def _files(folder: Path, patterns: Sequence[str]) -> Iterator[Path]:
    for pattern in patterns:
        for depth in range(_DEPTH):
            yield from sorted(folder.glob("*/" * depth + pattern))


def _read(path: Path, kind: str, faults: list[str]) -> dict[str, Any] | None:
    """Contents of a result's file; None where it is none of this kind, or cannot be read."""
    try:
        contents = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        faults.append(f"{'/'.join(path.parts[-3:])}: cannot be read ({str(error).partition(chr(10))[0]})")
        return None
    if isinstance(contents, dict) and all(key in contents for key in _KEYS[kind]):
        return contents
    if kind != COMPARE:  # its folder may hold other files
        faults.append(f"{'/'.join(path.parts[-3:])}: not a result of `{kind}`; expected {', '.join(_KEYS[kind])} in it")
    return None


def _concerns(kind: str, contents: dict[str, Any], runs: Mapping[str, RunInfo]) -> bool:
    try:
        if kind == COMPARE:
            named = [contents["run_a"], contents["run_b"]]
        elif kind == CROSS:
            named = [row["name"] for row in contents["rows"] if row["source"] == _OURS]
        elif kind == THEOREM:
            named = [contents["run"]]
        else:
            named = [run["name"] if isinstance(run, dict) else run for run in contents["runs"]]
        return bool({Path(name).name for name in named} & {run.path.resolve().name for run in runs.values()})
    except (KeyError, TypeError):
        return True  # it is shown as a fault where its section is made
