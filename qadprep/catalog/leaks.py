"""What two splits of a dataset share although splits should share nothing: recordings, donors, people."""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from qadprep.catalog.base import Clip
from qadprep.catalog.splits import load_ffpp_youtube_ids

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Leak:
    """Something that clips of two splits have in common.

    Attributes:
        kind: `recording` (the same video), `donor` (a fake's face comes from a video of the other split) or `identity`
            (the same person).
        what: the group, YouTube video or person that they share.
        splits: the two splits, in the order train, val, test.
        clips: ids of the clips concerned, in both splits, sorted. For a donor: the fakes that carry the donor's face,
            and the clips that show the donor's video itself.
        droppable: whether dropping the clips of `train` among them is offered (see `find_leaks`).
    """

    kind: str
    what: str
    splits: tuple[str, str]
    clips: tuple[str, ...]
    droppable: bool


def find_leaks(dataset: str, clips: Iterable[Clip]) -> list[Leak]:
    """Every leak between two splits of a dataset; clips without a split (`none`) leak nowhere.

    - `recording`: clips of one group in two splits. For FaceForensics++, whose sequences are cut from YouTube videos,
      all clips whose target was cut from one YouTube video. For Celeb-DF-v2 this also names the originals of test fakes
      that are not in the test list.
    - `donor`: FaceForensics++ only. A fake whose source was cut from a YouTube video that another split shows, or takes
      a face from.
    - `identity`: Celeb-DF-v2 only. A person who is shown, or gives the face, in two splits.

    Droppable is what shares a recording or a donor with `train`, and people in `train` and `val`. Celeb-DF-v2's people
    in `train` and `test` are told but not droppable: the test list names nearly everybody, so hardly any training clip
    would be left. Leaks between `val` and `test` concern no training clip.

    Args:
        dataset: registry name; the kinds that hang on a dataset's own names are searched for that dataset alone.
        clips: in any order.

    Returns:
        Sorted by kind, what and splits.
    """
    clips = [clip for clip in clips if clip.split in SPLITS]
    leaks = []
    if dataset == "ffpp":
        video = load_ffpp_youtube_ids()
        shown = _gather((clip, video.get(clip.target, clip.group)) for clip in clips)
        given = _gather((clip, video[clip.source]) for clip in clips if clip.source in video)
        leaks += _across("recording", shown)
        leaks += _donors(shown, given)
    else:
        leaks += _across("recording", _gather((clip, clip.group) for clip in clips))
    if dataset == "celebdf":
        people = _gather((clip, name) for clip in clips for name in {clip.target, clip.source} if name)
        leaks += [
            Leak(leak.kind, leak.what, leak.splits, leak.clips, leak.splits == ("train", "val"))
            for leak in _across("identity", people)
        ]
    return sorted(leaks, key=lambda leak: (leak.kind, leak.what, [SPLITS.index(split) for split in leak.splits]))


def drop_leaks(clips: Sequence[Clip], leaks: Iterable[Leak]) -> tuple[list[Clip], list[Clip]]:
    """Take the training clips of droppable leaks out, so that validation and test say something about unseen videos.

    Returns:
        (kept, dropped), both in the given order; only clips of `train` are ever dropped.
    """
    leaking = {name for leak in leaks if leak.droppable for name in leak.clips}
    kept: list[Clip] = []
    dropped: list[Clip] = []
    for clip in clips:
        (dropped if clip.split == "train" and clip.id in leaking else kept).append(clip)
    return kept, dropped


# what is shared -> split -> clips
_Places = dict[str, dict[str, list[Clip]]]


def _gather(pairs: Iterable[tuple[Clip, str]]) -> _Places:
    places: defaultdict[str, defaultdict[str, list[Clip]]] = defaultdict(lambda: defaultdict(list))
    for clip, what in pairs:
        places[what][clip.split].append(clip)
    return places


def _across(kind: str, places: _Places) -> list[Leak]:
    """A leak for every thing and every two splits that have it."""
    return [
        _leak(kind, what, pair, [*by_split[pair[0]], *by_split[pair[1]]])
        for what, by_split in places.items()
        if len(by_split) > 1
        for pair in itertools.combinations(SPLITS, 2)
        if pair[0] in by_split and pair[1] in by_split
    ]


def _donors(shown: _Places, given: _Places) -> list[Leak]:
    """A leak for every video that gives a face in one split and is shown in another, or gives in both."""
    leaks = []
    for what, givers in given.items():
        viewers = shown.get(what, {})
        for pair in itertools.combinations(SPLITS, 2):
            a, b = pair
            if (a in givers and (b in viewers or b in givers)) or (b in givers and a in viewers):
                members = [clip for split in pair for clip in (*givers.get(split, ()), *viewers.get(split, ()))]
                leaks.append(_leak("donor", what, pair, members))
    return leaks


def _leak(kind: str, what: str, splits: tuple[str, str], clips: list[Clip]) -> Leak:
    return Leak(kind, what, splits, tuple(sorted({clip.id for clip in clips})), "train" in splits)
