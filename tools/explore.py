"""Explorables: what a page holds of them, and the pictures that stand where no script runs.

python -m tools.explore         draw the pictures anew, in Chromium

A chapter's explorables are functions of book/NN_name/explore.js; what all share stands in
book/_static/explore/explore.js. Beside the former lies, for each, explore-NAME.svg: what it draws
before anybody has touched it, with what its line says as the description. Pages hold that picture
until a script replaces it (book/_ext/explore_ext.py); tests/test_explore.py checks that it is what
is drawn.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape, unescape
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

from tools.check_browser import BROWSERS, FLAGS

BOOK = Path(__file__).resolve().parents[1] / "book"
SHARED = "explore/explore.js"  # under _static
HOME = "http://explorables.test/"
EXPORTED = re.compile(r"^export const explorables = \{ (.*) \};$", re.MULTILINE)
DESCRIBED = re.compile(r"<desc>(.*?)</desc>", re.DOTALL)


def chapters() -> list[Path]:
    """Return the modules of the chapters, in order."""
    return sorted(BOOK.glob("*/explore.js"))


def names(module: Path) -> list[str]:
    """Return the explorables of a module."""
    exported = EXPORTED.search(module.read_text("utf-8"))
    if exported is None:
        raise ValueError(f"{module}: must end with export const explorables = {{ … }};")
    return exported[1].split(", ")


def still_of(module: Path, name: str) -> Path:
    """Return the file of the picture of one explorable."""
    return module.with_name(f"explore-{name}.svg")


def board(module: Path, name: str) -> str:
    """Return the part of a figure that a script takes over: its picture and its line of words."""
    still = still_of(module, name)
    drawn = still.read_text("utf-8").strip() if still.exists() else "<svg><desc></desc></svg>"
    described = DESCRIBED.search(drawn)
    if described is None:
        raise ValueError(f"{still}: must have a description")
    picture = DESCRIBED.sub("", drawn)
    return (
        f'<div class="explore-board"><div class="explore-picture">{picture}</div></div>'
        f'<p class="explore-said" aria-live="polite">{described[1]}</p>'
    )


def script(code: str) -> str:
    """Return the script of a page: within it, since no browser loads a module from a disk."""
    return f'<script type="module">\n{code}explore.show(explorables);\n</script>'


def page_of(module: Path, code: str) -> str:
    """Return a page with all explorables of a module, whose text is ``code``, and nothing else."""
    figures = "".join(
        f'<figure class="explorable" data-explore="{name}" id="explore-{name}">'
        f"{board(module, name)}</figure>"
        for name in names(module)
    )
    return (
        '<!doctype html><html lang="en" data-theme="light"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{module.parent.name}</title><link rel="icon" href="data:,">'
        f'<link rel="stylesheet" href="{HOME}_static/book.css">'
        f'<script defer src="{HOME}_static/{SHARED}"></script></head>'
        f'<body><main><h1>{module.parent.name}</h1><article class="bd-article">{figures}</article>'
        f"</main>{script(code)}</body></html>"
    )


@contextmanager
def chromium() -> Iterator[Browser | None]:
    """Start a browser; give none where there is none."""
    path = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if path is None:
        yield None
        return
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


def open_page(
    browser: Browser, module: Path, said: list[str], code: str | None = None, **options: Any
) -> Page:
    """Open a module's page; what it asks of other places, and its errors, are added to ``said``.

    The page comes from these files, there is no server. Another ``code`` may stand in for the
    module's.
    """
    text = module.read_text("utf-8") if code is None else code
    page = browser.new_context(**options).new_page()

    def answer(route: Any) -> None:
        url = route.request.url
        if url == HOME:
            route.fulfill(body=page_of(module, text), content_type="text/html")
        elif url == f"{HOME}module.js":
            route.fulfill(body=text, content_type="text/javascript")
        elif url.startswith(f"{HOME}_static/"):
            route.fulfill(path=BOOK / url.removeprefix(HOME))
        else:
            said.append(f"asks for {url}")
            route.abort()

    page.route("**/*", answer)
    page.on("console", lambda m: said.extend([f"console: {m.text}"] * (m.type == "error")))
    page.on("pageerror", lambda error: said.append(f"script error: {error}"))
    page.goto(HOME)
    page.wait_for_load_state("load")
    return page


def drawn(page: Page, name: str) -> str:
    """Return the picture of an explorable as it is now, as its file would be."""
    figure = page.locator(f"#explore-{name}")
    svg = figure.locator(".explore-picture").evaluate("e => e.innerHTML")
    said = escape(unescape(figure.locator(".explore-said").inner_html()), quote=False)
    return svg.replace(">", f"><desc>{said}</desc>", 1).replace("><", ">\n<") + "\n"


def main() -> int:
    """Draw all pictures anew."""
    with chromium() as browser:
        if browser is None:
            print("no Chromium on this machine: nothing was drawn")
            return 1
        for module in chapters():
            said: list[str] = []
            page = open_page(browser, module, said)
            for name in names(module):
                still_of(module, name).write_text(drawn(page, name), "utf-8")
                print("wrote", still_of(module, name).relative_to(BOOK))
            page.context.close()
            print("\n".join(said), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
