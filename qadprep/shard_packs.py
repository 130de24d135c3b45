"""The complete tuples of a folder of face packs, pack by pack, with the keys that they have in a shard set."""

import hashlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from qadprep.config import ExtractConfig
from qadprep.errors import UserError
from qadprep.pack import Pack, find_packs, pack_schema, read_pack
from qadprep.parts import not_at_its_end
from qadprep.shard_format import KEY, MAX_KEY_CHARS, SPLIT
from qadprep.shard_rows import RowDigest
from qadprep.store import parallel_reads, read_json
from qadprep.summary import REPORT_NAME
from qadprep.ustar import member_header

if TYPE_CHECKING:
    from qadprep.store import Folder

# A complete tuple has all of these; others may be unknown.
_NEEDED = ("dataset", "group", "method", "name", "split", "label", "frame", "face")


@dataclass
class PackSource:
    """A finished extraction, read pack by pack; counts and hash are whole when `tables` has come to its end.

    Attributes:
        faces: folder of the packs.
        config: of the extraction.
        report: its summary.json.
        statuses: attempted tuples that are not complete, by status.
        complete: number of complete tuples.
    """

    faces: "Folder"
    config: ExtractConfig
    report: dict[str, Any] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=dict)
    complete: int = 0

    def __post_init__(self) -> None:
        report = read_json(self.faces / REPORT_NAME)
        if report is None:
            raise UserError(not_at_its_end(self.faces))
        self.report = report
        self._content = hashlib.sha256(self.config.hash().encode())

    @property
    def packs_hash(self) -> str:
        """sha256 (hex) over the config and every row of every pack: all that orders, filters, counts and describes."""
        return self._content.hexdigest()

    def left_out(self) -> dict[str, int]:
        """Attempted tuples that are not complete, by status; groups without a pack as well."""
        lost = sum(failure["what"] == failure["group"] for failure in self.report.get("failures", []))
        return dict(self.statuses) | ({"groups_without_pack": lost} if lost else {})

    def facts(self) -> dict[str, Any]:
        """What `shards.json` says of the extraction: `extraction`, and `sync` and `protocol` where they are known."""
        attempted = self.complete + sum(self.statuses.values())
        failures = len(self.report.get("failures", []))
        found: dict[str, Any] = {"extraction": {"attempted": attempted, "ok": self.complete, "failures": failures}}
        found |= {name: self.report[name] for name in ("sync", "protocol") if self.report.get(name)}
        return found

    def tables(self) -> Iterator[pa.Table]:
        """The complete tuples of each pack: all columns of this version, then `tar` (relative to the folder) and `key`.

        Raises:
            UserError: no packs, one that is damaged or of another config, or names that make no key.
        """
        paths = find_packs(self.faces)
        if not paths:
            raise UserError(f"{self.faces}: no face packs there; write them with `qadprep extract`")
        config_hash = self.config.hash()
        for path, pack in zip(paths, _read_packs(self.faces, paths), strict=True):
            if pack.meta.get("config_hash") != config_hash:
                raise UserError(
                    f"{path}: is of another config than {self.faces / 'extract.json'}; finish `qadprep extract` with "
                    "--overwrite"
                )
            yield self._complete(path, pack.table.replace_schema_metadata(None))

    def read_all(self) -> None:
        """Read every pack for its counts and hash only."""
        for _ in self.tables():
            pass

    def _complete(self, path: "Folder", table: pa.Table) -> pa.Table:
        hashes = [f"{quality}_pixels_sha256" for quality in self.config.qualities]
        places = [f"{quality}_{part}" for quality in self.config.qualities for part in ("offset", "size")]
        lacking = [name for name in (*_NEEDED, "status", *hashes, *places) if name not in table.column_names]
        if lacking:
            raise UserError(f"{path}: no column {lacking[0]!r}; not a face pack of this version, extract it again")
        table = self._in_this_version(path, table)
        digest = RowDigest()
        digest.add(table)
        self._content.update(f"{path.parent.name}/{path.stem} {digest.hexdigest()}".encode())
        for count in pc.value_counts(table["status"]).to_pylist():
            if count["values"] != "ok":
                self.statuses[count["values"]] = self.statuses.get(count["values"], 0) + count["counts"]
        table = table.filter(pc.equal(table["status"], "ok"))
        for name in (*_NEEDED, *hashes, *places):
            if table[name].null_count:
                raise UserError(f"{path}: column {name!r} of a complete tuple is empty; extract it again")
        table = table.append_column("tar", pa.array([f"{path.parent.name}/{path.stem}.tar"] * len(table), pa.string()))
        table = table.append_column("key", _keys(table))
        self._check_keys(path, table["key"])
        for split in table["split"].unique().to_pylist():
            if not SPLIT.fullmatch(split):
                raise UserError(
                    f"{path}: split {split!r}; expected a word of at most 16 small letters and digits, such as train; "
                    "change it in the manifest and extract again"
                )
        self.complete += len(table)
        return table

    def _in_this_version(self, path: "Folder", table: pa.Table) -> pa.Table:
        """The columns of this version: what a pack of another minor version lacks is null, what it has more is left
        out, so that all packs have the same ones.
        """
        columns = []
        for column in pack_schema(self.config.qualities):
            if column.name not in table.column_names:
                columns.append(pa.nulls(len(table), column.type))
                continue
            try:
                columns.append(table[column.name].cast(column.type))
            except (pa.ArrowException, KeyError) as error:
                kinds = [str(field.type) for field in table.schema if field.name == column.name]
                raise UserError(
                    f"{path}: column {column.name!r} is of type {' and '.join(kinds)}, expected {column.type}; extract "
                    "it again"
                ) from error
        return pa.table(columns, schema=pack_schema(self.config.qualities))

    def _check_keys(self, path: "Folder", keys: pa.ChunkedArray) -> None:
        good = pc.match_substring_regex(keys, f"^(?:{KEY.pattern})$")
        for key in keys.filter(pc.invert(good)).to_pylist()[:1]:
            raise UserError(f"{path}: {key!r} cannot be a key; it must match {KEY.pattern}")
        for key in keys.filter(pc.greater(pc.utf8_length(keys), 60)).to_pylist():
            try:
                for quality in self.config.qualities:
                    member_header(f"{key}.{quality}.webp", 0)
            except ValueError:
                raise UserError(
                    f"{path}: {key!r} is too long for a name in a tar; give the video a short name"
                ) from None
            if len(key) > MAX_KEY_CHARS:
                raise UserError(f"{path}: {key!r} has {len(key)} characters, over {MAX_KEY_CHARS}")


def _keys(table: pa.Table) -> pa.ChunkedArray:
    """`<dataset>/<method>/<name>/<frame:06d>_<face>`."""
    frame = pc.utf8_lpad(pc.cast(table["frame"], pa.string()), 6, "0")
    last = pc.binary_join_element_wise(frame, pc.cast(table["face"], pa.string()), "_")
    return pc.binary_join_element_wise(table["dataset"], table["method"], table["name"], last, "/")


def _read_packs(faces: "Folder", paths: "list[Folder]") -> Iterator[Pack]:
    """Packs in order, read several at a time where that pays, but never far ahead of their use."""
    ahead = parallel_reads(faces)
    waiting: deque[Future[Pack]] = deque()
    with ThreadPoolExecutor(ahead) as pool:
        try:
            for path in paths:
                waiting.append(pool.submit(read_pack, path))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
