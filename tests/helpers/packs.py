"""Fingerprints of output folders."""

import hashlib
from pathlib import Path


def pack_hashes(folder: Path) -> dict[str, str]:
    """Relative path -> sha256 of every pack file in a folder."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.glob("*/*"))
        if file.is_file()
    }
