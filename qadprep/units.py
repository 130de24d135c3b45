"""Sizes as people write them."""

import re
from decimal import Decimal

from qadprep.errors import UserError

# More digits than any disk needs, and few enough for Decimal to multiply them exactly.
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([kmgt]?)(i?)b?", re.IGNORECASE | re.ASCII)


def parse_bytes(text: str, option: str) -> int:
    """`500MB`, `1.5GiB`, `64k` or `1000000` -> bytes; kB, MB ... count in thousands, KiB, MiB ... in 1024s.

    Args:
        option: how the message names it, such as `--shard-size`.

    Raises:
        UserError: something else, less than one byte, or a number of over 15 digits.
    """
    match = _SIZE.fullmatch(text.strip())
    if match:
        number, prefix, binary = match.groups()
        value = int(Decimal(number) * (1024 if binary else 1000) ** " kmgt".index(prefix.lower() or " "))
        if value >= 1 and not (binary and not prefix):
            return value
    raise UserError(f"{option}: got {text!r}; expected a size such as 500MB, 1GiB or a number of at most 15 digits")
