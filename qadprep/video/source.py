"""Where a clip's frames come from: a video file, or pictures that others have cut already."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from qadprep.video.decode import FrameReader
from qadprep.video.pictures import PictureReader, PictureSequence, is_pictures
from qadprep.video.probe import VideoInfo, probe


@dataclass(frozen=True)
class Source:
    """One readable file of a clip.

    Attributes:
        info: its probe.
        path: the video, or None for pictures.
        pictures: the opened sequence, or None for a video.
    """

    info: VideoInfo
    path: Path | None
    pictures: PictureSequence | None = None

    def reader(
        self,
        indices: Sequence[int],
        *,
        thumbs_at: Collection[int] = (),
        threads: int = 1,
    ) -> FrameReader | PictureReader:
        """A reader of the frames at `indices` (positions from 0, rising); arguments as in `FrameReader`."""
        if self.pictures is not None:
            return PictureReader(self.pictures, indices, thumbs_at=thumbs_at)
        return FrameReader(self.path, self.info, indices, thumbs_at=thumbs_at, threads=threads)

    def number(self, position: int) -> int:
        """The frame number that names a frame: its position in a video, the number in a picture's file name."""
        numbers = self.pictures.numbers if self.pictures is not None else ()
        return numbers[position] if 0 <= position < len(numbers) else position


def open_source(root: Path, path: str) -> Source:
    """Open what a manifest's path names.

    Args:
        root: the dataset's root.
        path: relative to it: a video, `<tar>::<folder inside>`, or a folder of pictures with a slash at its end.

    Raises:
        ProbeError: it cannot be used; the reason is a short stable word.
    """
    if is_pictures(path):
        sequence = PictureSequence.open(root, path)
        return Source(sequence.info, None, sequence)
    return Source(probe(root / path), root / path)
