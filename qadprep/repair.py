"""`qadprep verify --repair`: write damaged shards and indexes again, from the face packs they were made of."""

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from qadprep.errors import UserError
from qadprep.shard_format import CONFIG_NAME, INDEX_NAME, read_info
from qadprep.shard_output import output_folder
from qadprep.shard_writer import CropFault
from qadprep.store import open_folder, write_json
from qadprep.verify import Level, VerifyReport, verify
from qadprep.verify_set import config_faults, config_hash

if TYPE_CHECKING:
    from qadprep.store import Folder


@dataclass
class RepairReport:
    """Result of `repair`.

    Attributes:
        found: what was wrong before.
        repaired: files that were written again and are now what `shards.json` says.
        crops: of the packs, damaged themselves, for which shards could not be written again.
        left: the repaired shards verified again, and everything that could not be mended; it decides the exit code.
    """

    found: VerifyReport
    repaired: list[str] = field(default_factory=list)
    crops: list[CropFault] = field(default_factory=list)
    left: VerifyReport = field(default_factory=lambda: VerifyReport("full"))

    def as_dict(self) -> dict[str, Any]:
        """Machine-readable form (`--json`): what is left, and what there was before."""
        more = {"repaired": self.repaired, "damaged_crops": [asdict(crop) for crop in self.crops]}
        return self.left.as_dict() | more | {"found": self.found.as_dict()}


def repair(
    shards: "str | Folder", faces: "str | Folder", *, level: Level = "full", workers: int = 0, progress: bool = True
) -> RepairReport:
    """Verify a shard set, write what is damaged again from its packs, and verify that again.

    Missing and damaged tars and indexes come back byte for byte, as `shards.json` has their hashes; so does
    `shard.json`. Shards that are whole, and files that are not of the set, are not touched.

    Args:
        shards: local folder or fsspec URL.
        faces: the face packs that it was made from.
        level: how closely to look for damage, as in `verify`.

    Raises:
        UserError: `shards.json` itself is missing or damaged, or the packs are other ones.
    """
    folder = open_folder(shards)
    try:
        info = read_info(folder)
    except UserError as error:
        hint = f"{INDEX_NAME} cannot be repaired, run `qadprep shard {faces} --out {shards} --overwrite` again"
        raise UserError(f"{error}; {hint}") from error
    config = info.get("config") or {}
    _refuse_other_packs(folder, config, faces)
    report = RepairReport(verify(folder, level=level, workers=workers, progress=progress))
    if not report.found.fault_count:
        report.left = report.found
        return report
    # Before the shards: it is what the packs are compared with.
    if any(fault.shard == CONFIG_NAME for fault in config_faults(folder, info)) and (
        config_hash(config) == info.get("config_hash")
    ):
        with output_folder(folder):
            write_json(folder / CONFIG_NAME, config)
        report.repaired.append(CONFIG_NAME)
    damaged = report.found.damaged
    if damaged:
        from qadprep.shard import rewrite_shards

        report.repaired += rewrite_shards(faces, folder, damaged, report.crops)
    report.left = verify(folder, level=level, workers=workers, progress=progress, only=damaged)
    return report


def _refuse_other_packs(folder: "Folder", config: dict[str, Any], faces: "str | Folder") -> None:
    """What can be known at once; whether the packs' content is right shows when shards are written."""
    if "packs_hash" not in config:
        raise UserError(
            f"{folder}: was not written from face packs, but by {config.get('made_by', 'another program')}; repair the "
            "sets it was made from, and make it again"
        )
    from qadprep.extract_dataset import load_config

    here, noted = load_config(open_folder(faces)).model_dump(mode="json"), config.get("extract") or {}
    other = [name for name in here if here[name] != noted.get(name)]
    if other:
        raise UserError(
            f"{faces}: was extracted with {other[0]} = {here[other[0]]!r}, the packs of {folder} with "
            f"{noted.get(other[0])!r}; name the folder that it was made from"
        )
