"""Where a set's tuples come from: the sets and packs that it was made of, how they were chosen, what was left out."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qadprep.shardset import ShardSet

# Settings that decide which tuples a set holds, with the value that leaves nothing out.
_SELECTION = {"qualities": None, "splits": None, "methods": None, "min_face_px": 0, "drop_unaltered": False,
              "max_frames": None, "where": None, "by": None, "value": None, "folds": None, "fold": None,
              "fold_seed": None}  # fmt: skip
# Why `shard`, `split` and `merge` themselves leave a tuple out; another set of the same packs may hold it.
_BY_CHOICE = {"filter_split", "filter_method", "filter_where", "over_max_frames", "thinned", "other_parts",
              "not_chosen", "duplicate"}  # fmt: skip
# Counted in `left_out`, but no tuples.
_GROUPS = "groups_without_pack"


@dataclass(frozen=True)
class Counts:
    """What `shards.json` says of the way from the videos to the tuples.

    Attributes:
        left_out: attempted tuples that are not in the set, by reason.
        more: `extraction`, `sync` and `protocol`, as far as they are known of the whole set.
    """

    left_out: dict[str, int] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)


def selection(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of a set that left tuples out of it."""
    chosen = {name: config[name] for name, whole in _SELECTION.items() if config.get(name, whole) != whole}
    return chosen | ({"balance": "equal"} if config.get("balance") == "equal" else {})


def sources_of(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The sets that a set was made of, as its config names them (see `identity`); none for one of face packs."""
    named = config.get("merged") or [config.get("split_of")]
    return [source for source in named if isinstance(source, dict)] if isinstance(named, list) else []


def packs_of(config: dict[str, Any]) -> set[str]:
    """Hashes of the folders of packs that a set's tuples come from; empty where not all of them are known."""
    packs = [config["packs_hash"]] if config.get("packs_hash") else config.get("packs")
    return set(packs) if isinstance(packs, list) and all(isinstance(one, str) for one in packs) else set()


def identity(shards: "ShardSet") -> dict[str, Any]:
    """By what a set names the set that it was made from: name, fingerprint of the data, config hash, how that one's
    tuples were chosen (`chosen`), and what it was made of itself (`made_of`).
    """
    config = shards.info.get("config") or {}
    found = {
        "name": shards.info.get("name", ""),
        "fingerprint": shards.fingerprint,
        "config_hash": shards.info.get("config_hash", ""),
    }
    more = {"chosen": selection(config), "made_of": sources_of(config)}
    return found | {name: value for name, value in more.items() if value}


def origin(sources: "Sequence[ShardSet]") -> dict[str, Any]:
    """For the config of a set made of others: `packs`, where they are known of all sources, and `extract`, the
    settings of the extraction, where all have the same ones.
    """
    configs = [source.info.get("config") or {} for source in sources]
    packs = [packs_of(config) for config in configs]
    found: dict[str, Any] = {"packs": sorted(set().union(*packs))} if all(packs) else {}
    extract = configs[0].get("extract")
    if extract and all(config.get("extract") == extract for config in configs):
        found["extract"] = extract
    return found


def part_counts(source: "ShardSet", reason: str, kept: int) -> Counts:
    """Of a set with some tuples of another one; `reason` is why the others are not in it."""
    left_out = _numbers(source, "left_out")
    left_out[reason] = left_out.get(reason, 0) + len(source) - kept
    more = {name: source.info[name] for name in ("sync", "extraction", "protocol") if source.info.get(name)}
    return Counts(_sorted(left_out), more)


def of_the_same_packs(sources: "Sequence[ShardSet]") -> list[list[int]]:
    """Numbers of the sources, those together that have packs in common."""
    packs = [packs_of(source.info.get("config") or {}) for source in sources]
    found: list[list[int]] = []
    for number, own in enumerate(packs):
        near = [group for group in found if any(own & packs[other] for other in group)]
        joined = sorted(other for group in near for other in group)
        found = [group for group in found if group not in near] + [[*joined, number]]
    return sorted(found)


def merged_counts(sources: "Sequence[ShardSet]", tuples: Sequence[int], kept: int) -> Counts:
    """Of several sets in one. What sets of the same packs say of these is counted once.

    Args:
        tuples: for each list of `of_the_same_packs` its number of different tuples.
        kept: tuples in the merged set; those that an earlier set had as well count as `duplicate`.
    """
    left_out = {"duplicate": sum(tuples) - kept}
    more: dict[str, dict[str, int] | None] = {"sync": {}, "extraction": {}}
    for group, count in zip(of_the_same_packs(sources), tuples, strict=True):
        members = [sources[number] for number in group]
        packs = [packs_of(member.info.get("config") or {}) for member in members]
        # What it says is true of all packs of the group. There may be no such set.
        whole = [member for member, own in zip(members, packs, strict=True) if own == set().union(*packs)]
        if whole:
            _add(left_out, _left_out_of_all(whole, count) if len(members) > 1 else _numbers(whole[0], "left_out"))
        for name, total in more.items():
            told = _numbers(whole[0], name) if whole else {}
            if total is not None and told:
                _add(total, told)
            else:
                more[name] = None
    protocol = sources[0].info.get("protocol")
    shared = protocol and all(source.info.get("protocol") == protocol for source in sources)
    known = {name: dict(sorted(total.items())) for name, total in more.items() if total}
    return Counts(_sorted(left_out), known | ({"protocol": protocol} if shared else {}))


def _left_out_of_all(sets: "Sequence[ShardSet]", tuples: int) -> dict[str, int]:
    """Left out of what sets of the same packs have together. A reason can hold for no more tuples than in the set where
    it holds for the fewest; the others were not chosen.
    """
    reasons = [_numbers(one, "left_out") for one in sets]
    found = {
        reason: least
        for reason in reasons[0]
        if reason not in _BY_CHOICE and (least := min(counts.get(reason, 0) for counts in reasons))
    }
    attempted = _numbers(sets[0], "extraction").get("attempted", 0)
    rest = attempted - tuples - sum(count for reason, count in found.items() if reason != _GROUPS)
    return found | ({"not_chosen": rest} if rest > 0 else {})


def _numbers(source: "ShardSet", name: str) -> dict[str, int]:
    """Counts that a set keeps under a name."""
    return {word: count for word, count in (source.info.get(name) or {}).items() if isinstance(count, int)}


def _add(total: dict[str, int], counts: dict[str, int]) -> None:
    for word, count in counts.items():
        total[word] = total.get(word, 0) + count


def _sorted(counts: dict[str, int]) -> dict[str, int]:
    return {word: counts[word] for word in sorted(counts) if counts[word]}
