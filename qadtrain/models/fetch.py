"""Fetching pretrained weights without a minute of retries where there is no network."""

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit
from urllib.request import getproxies

REACH_TIMEOUT_S = 5.0


@contextmanager
def quiet_hub() -> Iterator[None]:
    """The hub's client warns at every retry; the caller says in one line what failed and what to do.

    When the hub cannot be reached at all, its client is told so: it then reads its cache, or fails at once.
    """
    from huggingface_hub import constants

    loggers = [logging.getLogger(name) for name in ("huggingface_hub", "timm")]
    levels = [logger.level for logger in loggers]
    offline = constants.HF_HUB_OFFLINE
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        constants.HF_HUB_OFFLINE = offline or not reachable(constants.ENDPOINT)
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def reachable(url: str) -> bool:
    """Whether the URL's host answers; taken as yes behind a proxy, where only the proxy can tell."""
    parts = urlsplit(url)
    if getproxies() or parts.hostname is None:
        return True
    try:
        socket.create_connection((parts.hostname, parts.port or 443), timeout=REACH_TIMEOUT_S).close()
    except OSError:
        return False
    return True
