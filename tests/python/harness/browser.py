"""A real browser without a window, and the accessibility checks of axe in it.

The browser is Chromium of this machine (`LATTICE_TEST_CHROMIUM`, or on the PATH). Where it or another tool is missing, the
tests that need it are skipped and name it. With `LATTICE_BROWSER=required`, as in CI, they fail.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

AXE = "axe-core@4.11.0"


def _missing(what: str) -> NoReturn:
    if os.environ.get("LATTICE_BROWSER") == "required":
        pytest.fail(f"{what}, and LATTICE_BROWSER=required", pytrace=False)
    pytest.skip(what)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Starts the browser, and ends it."""
    path = os.environ.get("LATTICE_TEST_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        _missing("no Chromium on this machine: apt-get install chromium, or set LATTICE_TEST_CHROMIUM")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _missing("no Playwright: pip install 'lattice-rdzv[test]'")
    with sync_playwright() as playwright:
        # Chromium has no sandbox for root.
        sandbox = ["--no-sandbox"] if os.getuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=path, args=sandbox)
        yield browser
        browser.close()


@cache
def _axe() -> str:
    """axe's script, from npm, once for each machine."""
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lattice-rdzv" / AXE.replace("@", "-")
    script = folder / "package" / "axe.min.js"
    if not script.exists():
        if shutil.which("npm") is None:
            _missing("no npm, which gets axe: apt-get install npm")
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            ["npm", "pack", "--silent", AXE], cwd=folder, capture_output=True, text=True, timeout=120, check=False
        )
        if done.returncode != 0:
            _missing(f"npm cannot get {AXE}: {done.stderr.strip()[-200:]}")
        with tarfile.open(folder / done.stdout.strip().splitlines()[-1]) as archive:
            archive.extract("package/axe.min.js", folder, filter="data")
    return script.read_text()


def violations(page: Page) -> list[str]:
    """Returns the problems that axe finds in the present state of the page."""
    # The page's policy forbids scripts of others, and does not apply to the browser's debugger.
    page.evaluate(_axe())
    found: dict[str, Any] = page.evaluate("axe.run()")
    return [
        f"{one['id']} ({one['impact']}): {one['help']}: {[node['html'][:120] for node in one['nodes'][:3]]}"
        for one in found["violations"]
    ]
