"""Draw docs/tuple.png from the demonstration's shards: one tuple of the original and of two manipulations.

uv run qadprep demo OUT && uv run python scripts/readme_picture.py OUT/shards docs/tuple.png
"""

import sys
from pathlib import Path

from qadprep.shardset import ShardSet
from qadprep.sheets import choose_rows, tuple_sheet


def main() -> None:
    shards = ShardSet(Path(sys.argv[1]), "test")
    tuple_sheet([shards[row] for row in choose_rows(shards, 3)], shards.qualities).save(sys.argv[2], optimize=True)


if __name__ == "__main__":
    main()
