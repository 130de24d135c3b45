"""``python -m qadtrain``."""

from qadtrain.cli import main

if __name__ == "__main__":
    main()
