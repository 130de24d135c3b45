"""`qadprep diff`: are two shard sets the same tuples, pixel for pixel, with the same facts, in the same order?"""

import json
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from qadprep.codecs import pixel_hash
from qadprep.crops import psnr_db
from qadprep.diff_report import DiffReport
from qadprep.errors import UserError
from qadprep.progress import progress_bar
from qadprep.raw_tuples import RawTuples
from qadprep.set_sql import index_of, sql_over
from qadprep.shard_format import DESCRIBING
from qadprep.shardset import ShardError, ShardSet, Tuple

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from qadprep.store import Folder

_BATCH = 1000
MAX_FAULTS = 40
_SETTINGS = ("qualities", "size_px", "codec", "format_version")


def diff(place_a: "str | Folder", place_b: "str | Folder", *, show: int = 10, ignore_order: bool = False) -> DiffReport:
    """Compare two shard sets by key.

    Pixels are compared by the hashes in the indexes, and decoded where there are none; the facts in the JSON members
    are compared where the tuples' bytes differ.

    Args:
        place_a, place_b: folders or fsspec URLs.
        show: most tuples with other pixels that are decoded to say how far they differ, and most keys named of a kind.
        ignore_order: do not ask whether the tuples stand in the same order.

    Raises:
        UserError: no shard set there, or one that holds a key twice.
    """
    if show < 0:
        raise UserError(f"--show: got {show}; expected 0 or more")
    with ShardSet(place_a) as a, ShardSet(place_b) as b:
        return _Comparison(a, b, show).run(ignore_order)


class _Comparison:
    def __init__(self, a: ShardSet, b: ShardSet, show: int) -> None:
        self.a, self.b, self.show = a, b, show
        self.tables = {"a": index_of(a), "b": index_of(b)}
        shared = [name for name in self.tables["a"].column_names if name in self.tables["b"].column_names]
        self.qualities = [quality for quality in a.qualities if quality in b.qualities]
        self.hashed = [quality for quality in self.qualities if f"{quality}_pixels_sha256" in shared]
        self.columns = [name for name in DESCRIBING if name in shared]
        self.has_sha256 = "sha256" in shared
        self.report = DiffReport(_side(a), _side(b))
        self._unreadable: set[tuple[str, str]] = set()

    def run(self, ignore_order: bool) -> DiffReport:
        report = self.report
        for name in _SETTINGS:
            of_a, of_b = _words(self.a.info[name]), _words(self.b.info[name])
            if of_a != of_b:
                report.settings.append((name, of_a, of_b))
        for name in DESCRIBING:
            for side in ("a", "b"):
                if name not in self.columns and name not in self.tables[side].column_names:
                    report.missing_columns.append((name, side.upper()))
        needed = ["key", *self.columns, *(f"{quality}_pixels_sha256" for quality in self.hashed)]
        needed += ["sha256"] * self.has_sha256
        with sql_over(**{side: table.select(needed) for side, table in self.tables.items()}) as connection:
            for side, place in (("a", self.a.path), ("b", self.b.path)):
                _refuse_doubles(connection, side, place)
            self._pair(connection)
            if not ignore_order:
                self._order(connection)
            self._pixels(connection)
            self._facts(connection)
        self._show()
        return report

    def _pair(self, connection: "DuckDBPyConnection") -> None:
        """Join by key; which columns differ."""
        flags = [f'a."{name}" IS DISTINCT FROM b."{name}" AS "other_{name}"' for name in self.columns]
        for quality in self.hashed:
            one, other = (f"{side}.{quality}_pixels_sha256" for side in "ab")
            flags.append(f"coalesce({one} <> {other}, false) AS pixels_{quality}")
            flags.append(f"({one} IS NULL OR {other} IS NULL) AS unknown_{quality}")
        bytes_differ = "a.sha256 IS DISTINCT FROM b.sha256 OR a.sha256 IS NULL" if self.has_sha256 else "true"
        connection.execute(
            f"CREATE TABLE pairs AS SELECT a.position AS a, b.position AS b, a.key AS key, "
            f"{', '.join([*flags, f'({bytes_differ}) AS other_bytes'])} FROM a JOIN b ON a.key = b.key"
        )
        report = self.report
        report.common = connection.execute("SELECT count(*) FROM pairs").fetchone()[0]
        report.only_in_a, report.only_in_b = len(self.a) - report.common, len(self.b) - report.common
        for side, other in (("a", "b"), ("b", "a")):
            query = f"SELECT key FROM {side} ANTI JOIN {other} USING (key) ORDER BY position LIMIT {self.show}"
            self._note(f"only_in_{side}", [key for (key,) in connection.execute(query).fetchall()])
        for name in self.columns:
            self._count(connection, f'"other_{name}"', report.columns, name)

    def _count(self, connection: "DuckDBPyConnection", flag: str, counts: dict[str, int], name: str) -> None:
        found = connection.execute(f"SELECT count(*) FROM pairs WHERE {flag}").fetchone()[0]
        if found:
            counts[name] = found
            query = f"SELECT key FROM pairs WHERE {flag} ORDER BY a LIMIT {self.show}"
            self._note(name, [key for (key,) in connection.execute(query).fetchall()])

    def _order(self, connection: "DuckDBPyConnection") -> None:
        """Common tuples whose rank among the common ones differs."""
        ranks = "SELECT key, a, row_number() OVER (ORDER BY a) AS x, row_number() OVER (ORDER BY b) AS y FROM pairs"
        self.report.moved = connection.execute(f"SELECT count(*) FROM ({ranks}) WHERE x <> y").fetchone()[0]
        query = f"SELECT key FROM ({ranks}) WHERE x <> y ORDER BY a LIMIT {self.show}"
        self._note("moved", [key for (key,) in connection.execute(query).fetchall()])

    def _pixels(self, connection: "DuckDBPyConnection") -> None:
        """Qualities that differ, by hash or else decoded."""
        self.differing: list[tuple[int, int]] = []
        if self.a.size_px != self.b.size_px:  # then every pixel is another one
            self.report.pixels = {quality: self.report.common for quality in self.qualities if self.report.common}
            self.report.tuples_with_other_pixels = self.report.common
            return
        counts = Counter()
        known = " OR ".join(f"pixels_{quality}" for quality in self.hashed) or "false"
        for quality in self.hashed:
            counts[quality] = connection.execute(f"SELECT count(*) FROM pairs WHERE pixels_{quality}").fetchone()[0]
        differing = connection.execute(f"SELECT count(*) FROM pairs WHERE {known}").fetchone()[0]
        query = f"SELECT a, b FROM pairs WHERE {known} ORDER BY a LIMIT {self.show}"
        self.differing = connection.execute(query).fetchall()
        blind = [quality for quality in self.qualities if quality not in self.hashed]
        unknown = "true" if blind else " OR ".join(f"unknown_{quality}" for quality in self.hashed) or "false"
        total = connection.execute(f"SELECT count(*) FROM pairs WHERE {unknown}").fetchone()[0]
        if total:
            asked = ", ".join(
                f"{f'unknown_{quality}' if quality in self.hashed else 'true'} AS ask_{quality}"
                for quality in self.qualities
            )
            query = f"SELECT a, b, key, ({known}) AS known, {asked} FROM pairs WHERE {unknown} ORDER BY a"
            with progress_bar("decode", total, "tuples") as advance:
                for row in _batches(connection, query):
                    advance(1, "")
                    wanted = [quality for quality in self.qualities if row[f"ask_{quality}"]]
                    pair = self._decoded(row["a"], row["b"])
                    if pair is None:
                        continue
                    others = [q for q in wanted if pixel_hash(pair[0].images[q]) != pixel_hash(pair[1].images[q])]
                    counts.update(others)
                    if others and not row["known"]:
                        differing += 1
                        if len(self.differing) < self.show:
                            self.differing.append((row["a"], row["b"]))
        self.report.tuples_with_other_pixels = differing
        self.report.pixels = {quality: counts[quality] for quality in self.qualities if counts[quality]}

    def _facts(self, connection: "DuckDBPyConnection") -> None:
        """JSON members of the tuples whose bytes differ."""
        total = connection.execute("SELECT count(*) FROM pairs WHERE other_bytes").fetchone()[0]
        counts = Counter()
        with (
            RawTuples(self.a) as of_a,
            RawTuples(self.b) as of_b,
            progress_bar("facts", total, "tuples") as advance,
        ):
            for row in _batches(connection, "SELECT a, b, key FROM pairs WHERE other_bytes ORDER BY a"):
                advance(1, "")
                found = []
                for side, reader in (("a", of_a), ("b", of_b)):
                    try:
                        found.append(reader.facts(row[side]))
                    except ShardError as error:
                        self._damage(side.upper(), row["key"], str(error))
                if len(found) == 2:
                    for name in sorted({*found[0], *found[1]}):
                        if _text(found[0], name) != _text(found[1], name):
                            counts[name] += 1
                            if counts[name] <= self.show:
                                self._note(f"json_{name}", [row["key"]])
        self.report.facts = dict(sorted(counts.items()))

    def _show(self) -> None:
        """How far pixels differ, for the first tuples of which they do."""
        for at_a, at_b in sorted(self.differing):
            pair = self._decoded(at_a, at_b)
            if pair is None:
                continue
            for quality in self.qualities:
                one, other = pair[0].images[quality], pair[1].images[quality]
                change = np.abs(one.astype(np.int16) - other.astype(np.int16))
                if change.any():
                    self.report.shown.append(
                        {
                            "key": pair[0].key,
                            "quality": quality,
                            "mean_abs": float(change.mean()),
                            "max_abs": int(change.max()),
                            "psnr_db": psnr_db(one, other),
                        }
                    )

    def _decoded(self, at_a: int, at_b: int) -> tuple[Tuple, Tuple] | None:
        """A pair of tuples; None where one is damaged, which is noted."""
        found = []
        for side, shards, position in (("A", self.a, at_a), ("B", self.b, at_b)):
            try:
                found.append(shards[position])
            except ShardError as error:
                self._damage(side, shards.table["key"][position].as_py(), str(error))
        return (found[0], found[1]) if len(found) == 2 else None

    def _damage(self, side: str, key: str, fault: str) -> None:
        self._unreadable.add((side, key))
        if len(self.report.faults) < MAX_FAULTS and (side, key, fault) not in self.report.faults:
            self.report.faults.append((side, key, fault))
        self.report.damaged = len(self._unreadable)

    def _note(self, what: str, keys: list[str]) -> None:
        if keys:
            self.report.examples.setdefault(what, []).extend(keys)


def _refuse_doubles(connection: "DuckDBPyConnection", side: str, place: "Folder") -> None:
    query = f"SELECT key FROM {side} GROUP BY key HAVING count(*) > 1 ORDER BY key LIMIT 1"
    found = connection.execute(query).fetchone()
    if found:
        raise UserError(f"{place}: holds {found[0]} twice; `qadprep verify {place}` says where")


def _batches(connection: "DuckDBPyConnection", query: str) -> Iterator[dict[str, Any]]:
    """Rows of a query, a bounded number in memory."""
    result = connection.cursor().execute(query)
    names = [column[0] for column in result.description]
    while rows := result.fetchmany(_BATCH):
        for row in rows:
            yield dict(zip(names, row, strict=True))


def _text(facts: dict[str, Any], name: str) -> str | None:
    """A fact in words that can be compared: an absent one is not an empty one, and NaN is NaN."""
    return json.dumps(facts[name], sort_keys=True) if name in facts else None


def _side(shards: ShardSet) -> dict[str, Any]:
    return {"name": shards.info.get("name", ""), "fingerprint": shards.fingerprint, "tuples": len(shards)}


def _words(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value)
