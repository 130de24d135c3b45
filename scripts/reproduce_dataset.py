"""The dataset of `reproduce.py --demo`: a few people in FF++'s layout, their fakes made by the demo's recipes.

    uv run python scripts/reproduce_dataset.py FOLDER/dataset [--clips VIDEOS]

Writes FOLDER/dataset.json beside the dataset: who is in it, and which videos could not be used.
"""

import argparse
import json
from pathlib import Path

PAIRS = {"train": 2, "val": 1, "test": 1}  # of people; each pair gives 2 originals and 10 fakes
FRAMES, SIZE_PX = 12, (208, 160)


def main() -> None:
    from qadprep.demo import STAND_IN_NOTE
    from qadprep.demo.dataset import make_dataset
    from qadprep.errors import UserError
    from qadprep.machine import available_cores

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder of the dataset")
    parser.add_argument("--clips", type=Path, help="folder of face videos for the originals")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", default="auto", help="processes; auto = one per core")
    arguments = parser.parse_args()
    workers = int(arguments.workers) if arguments.workers.isdecimal() else 0
    try:
        made = make_dataset(
            arguments.root,
            clips_dir=arguments.clips,
            frames=FRAMES,
            size_px=SIZE_PX,
            pairs=PAIRS,
            seed=arguments.seed,
            workers=max(workers, 0) or available_cores(),
            progress=lambda stage, done, total: print(f"{stage} {done}/{total}", flush=True) if done == total else None,
        )
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    for skipped in made.skipped:
        print(f"not used: {skipped.path.name}: {skipped.reason}")
    print(f"{made.from_clips} originals from videos, {len(made.clips)} clips. {STAND_IN_NOTE}")
    facts = {
        "clips": [f"{clip.split}/{clip.method}/{clip.name}: {clip.origin}" for clip in made.clips],
        "skipped": [f"{skipped.path.name}: {skipped.reason}" for skipped in made.skipped],
        "note": STAND_IN_NOTE,
    }
    (arguments.root.parent / "dataset.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
