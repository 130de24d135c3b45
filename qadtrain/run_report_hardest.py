"""Chapter of the page about runs: the tuples that a run gets most wrong at each quality, with their crops."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from qadprep.errors import UserError
from qadprep.report_section import Number, Picture, Section, Tabs
from qadprep.shardset import ShardError, ShardSet
from qadtrain.gradcam_panels import GAP_PX, LINE_PX, enlarged, png, side_of
from qadtrain.run_results import EVAL, Found, Results
from qadtrain.runs import RunInfo

COUNT = 6
_INK, _WRONG, _PAPER = (40, 40, 40), (190, 0, 0), (255, 255, 255)
_ACROSS = 2  # tuples side by side in a sheet


@dataclass(frozen=True)
class Hard:
    """A tuple and what the run says of it.

    Attributes:
        prob_fake: quality -> probability of fake, None where there is no score.
        wrong: probability of the wrong class at the quality that it was chosen for, 0..1.
    """

    key: str
    label: int
    method: str
    wrong: float
    prob_fake: dict[str, float | None]

    def is_wrong(self, quality: str) -> bool:
        prob = self.prob_fake[quality]
        return prob is not None and int(prob > 0.5) != self.label


def hardest(scores: Path, count: int = COUNT) -> dict[str, list[Hard]]:
    """Quality -> the tuples with the largest probability of the wrong class, one of a video and class at most.

    Args:
        scores: a scores.parquet.
        count: tuples for each quality.

    Returns:
        Qualities of the file, best first; equal ones in the order of the file. Tuples without a score are left out.

    Raises:
        UserError: not a file of scores.
    """
    from qadtrain.score_files import fake_probability, read_scores

    kept = read_scores(scores)
    prob = fake_probability(kept.logits)
    columns = {name: kept.index[name].to_pylist() for name in ("key", "label", "dataset", "method", "video")}
    label = np.array(columns["label"], dtype=np.int64)
    wrong = np.where(label[:, None] == 1, 1 - prob, prob)
    found: dict[str, list[Hard]] = {}
    for number, quality in enumerate(kept.qualities):
        order = np.argsort(-wrong[:, number], kind="stable")
        taken: list[Hard] = []
        videos = set()
        for row in order.tolist():
            video = tuple(columns[name][row] for name in ("dataset", "method", "video", "label"))
            if len(taken) == count or not np.isfinite(wrong[row, number]):
                break  # those without a score come last
            if video in videos:
                continue
            videos.add(video)
            said = {q: float(p) if np.isfinite(p) else None for q, p in zip(kept.qualities, prob[row], strict=True)}
            key, method = columns["key"][row], columns["method"][row]
            taken.append(Hard(key, int(label[row]), method, float(wrong[row, number]), said))
        found[quality] = taken
    return found


def hardest_chapter(results: Results, runs: Mapping[str, RunInfo], shards: Sequence[Path]) -> Iterator[Section]:
    """A table for each run and evaluation; pictures where one of the shard sets is the one that was scored."""
    found = results.of(EVAL)
    if not found:
        return
    yield Section(
        "Hardest tuples",
        "Largest probability of the wrong class at each quality, one of a video at most. Figures: probability of fake.",
        anchor="hardest",
        chapter=True,
    )
    with ExitStack() as stack:
        opened: dict[str, ShardSet] = {}
        for path in shards:
            try:
                one = stack.enter_context(ShardSet(str(path)))
                opened[one.fingerprint] = one
            except (UserError, OSError) as error:
                results.faults.append(f"--shards: {error}; hardest tuples are shown without pictures of it")
        for one in found:
            try:
                by_quality = hardest(one.folder / "scores.parquet")
                fingerprint = one.contents["shards"]["fingerprint"]
            except (UserError, KeyError, OSError) as error:
                results.faults.append(f"{one.name}: {error}")
                continue
            section = _section(one, by_quality, opened.get(fingerprint), results.faults)
            if opened and fingerprint not in opened:
                section.text = f"No crops: no set of `--shards` is the one that was scored, {fingerprint[:12]}."
            yield section


def _section(
    one: Found, by_quality: Mapping[str, Sequence[Hard]], shards: ShardSet | None, faults: list[str]
) -> Section:
    rows = [
        (
            *(quality, each.key, each.method, "fake" if each.label else "real", Number(f"{each.wrong:.4f}")),
            *(Number("-" if prob is None else f"{prob:.4f}") for prob in each.prob_fake.values()),
        )
        for quality, tuples in by_quality.items()
        for each in tuples
    ]
    columns = ("at", "tuple", "method", "label", "wrong by", *(f"fake, {quality}" for quality in by_quality))
    pictures, text = [], ""
    if shards is None:
        text = "The crops are shown where the report is given the shard set: `--shards`."
    else:
        sheets = [
            (f"at {quality}", Picture(sheet, f"Tuples most wrong at {quality}, at every quality"))
            for quality, tuples in by_quality.items()
            if (sheet := _sheet(tuples, shards, faults)) is not None
        ]
        pictures = [Tabs(f"Most wrong of {one.run} on {one.folder.name}", sheets)] if sheets else []
    title = f"{one.run} on {one.folder.name}"
    return Section(title, text, columns, rows, pictures, caption=f"Hardest tuples of {title}", folded=bool(pictures))


def _sheet(tuples: Sequence[Hard], shards: ShardSet, faults: list[str]) -> bytes | None:
    """One PNG of all tuples; None where none can be read."""
    strips = []
    for each in tuples:
        try:
            strips.append(strip_of(each, shards.by_key(each.key).images))
        except (ShardError, KeyError, OSError) as error:
            reason = str(error.args[0] if isinstance(error, KeyError) else error)  # str() puts quotes around the former
            line = f"hardest tuples: {reason if each.key in reason else f'{each.key}: {reason}'}"
            faults += [line] if line not in faults else []  # it may be hard at every quality
    if not strips:
        return None
    width, height = (max(sizes) for sizes in zip(*(strip.size for strip in strips), strict=True))
    lines = -(-len(strips) // _ACROSS)
    sheet = Image.new("RGB", (min(_ACROSS, len(strips)) * (width + 2 * GAP_PX), lines * (height + 2 * GAP_PX)), _PAPER)
    for number, strip in enumerate(strips):
        sheet.paste(strip, (number % _ACROSS * (width + 2 * GAP_PX), number // _ACROSS * (height + 2 * GAP_PX)))
    return png(sheet)


def strip_of(each: Hard, images: Mapping[str, np.ndarray]) -> Image.Image:
    """A tuple: its name, and below it the crops, each with its quality and the probability of fake, red where wrong.

    Args:
        images: quality -> uint8 (s, s, 3) RGB.

    Returns:
        An RGB picture; crop number n begins at x = n (side + 6), y = 16 px, each pixel as a square.
    """
    font = ImageFont.load_default(size=12)
    qualities = [quality for quality in each.prob_fake if quality in images]
    side = side_of(len(images[qualities[0]]))
    title = f"{each.key}, {'fake' if each.label else 'real'}"
    width = max(len(qualities) * (side + GAP_PX), round(font.getlength(title)) + GAP_PX)
    strip = Image.new("RGB", (width, side + 2 * LINE_PX), _PAPER)
    pen = ImageDraw.Draw(strip)
    pen.text((0, 0), title, fill=_INK, font=font)
    for column, quality in enumerate(qualities):
        left = column * (side + GAP_PX)
        strip.paste(Image.fromarray(enlarged(np.asarray(images[quality]), side)), (left, LINE_PX))
        prob = each.prob_fake[quality]
        said = "no score" if prob is None else f"fake {prob:.3f}"
        colour = _WRONG if each.is_wrong(quality) else _INK
        pen.text((left, LINE_PX + side + 1), f"{quality}: {said}", fill=colour, font=font)
    return strip
