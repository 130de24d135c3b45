"""`python -m qadprep`."""

from qadprep.cli import main

main()
