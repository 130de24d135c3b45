"""The work folder of reproduce.py: who is at work in it, which stages are done there, and what they left."""

import errno
import fcntl
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reproduce_steps import Stage

from qadprep.errors import UserError
from qadtrain.safe_files import remove, sha256_of, write_atomically

SCRIPTS = Path(__file__).parent
STATE_NAME, LOCK_NAME = "reproduce.json", ".reproduce.lock"
_NO_FLOCK = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


@contextmanager
def sole_user(out: Path) -> Iterator[int]:
    """Be the only one at work in a folder, which is made.

    Yields:
        The lock's file descriptor. A command that inherits it holds the lock too: killed by SIGKILL, reproduce.py
        leaves its command alive, and a second one beside it would write into the same files.

    Raises:
        UserError: somebody is at work there.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / LOCK_NAME).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{out}: another call is at work there, or the last command of one that was killed; wait for it"
            ) from None
        except OSError as error:
            if error.errno not in _NO_FLOCK:  # a network file system without locks
                raise
        yield file.fileno()


class Work:
    """The state file of a work folder: stage -> digests of the command, of what it was made from and what it left.

    Raises:
        UserError: the file cannot be read.
    """

    def __init__(self, out: Path) -> None:
        self.out, self.path = out, out / STATE_NAME
        self.stages: dict[str, dict[str, Any]] = {}
        try:
            found = json.loads(self.path.read_text("utf-8"))["stages"]
            self.stages = {name: dict(facts) for name, facts in found.items()}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{self.path}: cannot be read ({error}); delete it to do every stage again") from None

    def digest(self, stage: Stage) -> str:
        """Of its command and of what it is made from; the work folder may move."""
        made_from = {need: self.stages.get(need, {}).get("outputs") for need in stage.needs}
        outside = [sha256_of(path) for path in stage.inputs]
        words = ["=".join(map(self._inside, word.split("="))) for word in stage.command]
        return hashlib.sha256(json.dumps([words, made_from, outside], sort_keys=True).encode()).hexdigest()

    def _inside(self, word: str) -> str:
        """A path without the place of the work folder or of the scripts."""
        for folder, name in ((self.out, "OUT"), (SCRIPTS, "SCRIPTS")):
            if Path(word).is_relative_to(folder):
                return f"{name}/{Path(word).relative_to(folder).as_posix()}"
        return word

    def left(self, stage: Stage) -> dict[str, str | None]:
        """Name of each of its files -> sha256, None where it is not there."""
        return {path.relative_to(self.out).as_posix(): sha256_of(path) for path in stage.outputs}

    def is_done(self, stage: Stage) -> bool:
        known = self.stages.get(stage.name, {})
        left = self.left(stage)
        return not stage.always and known.get("digest") == self.digest(stage) and known.get("outputs") == left

    def note(self, stage: Stage, state: str, seconds: float) -> None:
        """The stage is done, wholly or partly."""
        self.stages[stage.name] = {
            "state": state,
            "digest": self.digest(stage),
            "outputs": self.left(stage),
            "seconds": round(seconds, 1),
        }
        self._write()

    def forget(self, names: Sequence[str]) -> None:
        for name in names:
            self.stages.pop(name, None)
        self._write()

    def discard(self, stages: Iterable[Stage]) -> None:
        """Delete tables and figures that are out of date, so that none is taken for one of this call.

        What data and training left stays: those commands judge for themselves what they can go on with.
        """
        for stage in stages:
            if stage.result:
                remove(stage.outputs)

    def _write(self) -> None:
        write_atomically(self.path, (json.dumps({"stages": self.stages}, indent=2) + "\n").encode())
