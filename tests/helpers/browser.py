"""A real browser without a window, for tests of the report's page."""

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--hide-scrollbars", "--force-device-scale-factor=1", "--force-color-profile=srgb",
)  # fmt: skip
NO_NETWORK = "--host-resolver-rules=MAP * ~NOTFOUND"


def browser() -> str:
    """The browser's program; without one the test is skipped, or fails where QAD_BROWSER=required is set."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        reason = f"no browser ({', '.join(_NAMES)}): install Debian's package chromium"
        if os.environ.get("QAD_BROWSER") == "required":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


def run(page: Path | str, profile: Path, *options: str) -> str:
    """Open a page with a fresh profile; what the browser printed."""
    address = page if isinstance(page, str) else page.as_uri()
    shutil.rmtree(profile, ignore_errors=True)
    command = [browser(), *_FLAGS, f"--user-data-dir={profile}", *options, address]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


def ask(page: Path, expression: str, profile: Path, *options: str) -> object:
    """The value of a JavaScript expression in a page once it is loaded.

    The page's policy forbids scripts, so a copy without it is opened, with one script that puts the value's JSON into
    the title.
    """
    text = page.read_text()
    bare = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    assert bare != text and "<script" not in text
    script = f"<script>addEventListener('load', () => {{ document.title = JSON.stringify({expression}); }});</script>"
    copy = page.with_name("copy-without-policy.html")
    copy.write_text(bare.replace("</body>", f"{script}</body>"))
    dom = run(copy, profile, "--dump-dom", NO_NETWORK, *options)
    copy.unlink()
    return json.loads(html.unescape(re.search(r"<title>(.*?)</title>", dom, re.DOTALL)[1]))
