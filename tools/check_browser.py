"""Open every built page in Chromium, with other hosts out of reach, and report what a reader would.

python -m tools.check_browser _build/html [--pictures FOLDER]

For each page: a request that leaves the site, a console error, a formula that was not
typeset, a page wider than a phone, and what axe finds in the content (light and dark).
An old address must lead on to what took its place, with its anchor.
Where no Chromium is found the check says so: it passes on a reader's machine, but fails in CI
(the environment variable CI is set), where nobody reads what passed.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import json
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import axe_playwright_python
from playwright.sync_api import Page, TimeoutError, ViewportSize, sync_playwright

from tools.check_html import PUBLISHED

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
AXE = Path(axe_playwright_python.__file__).parent / "axe.min.js"
PATIENCE = 180_000  # milliseconds; a busy machine takes long over the longest page
PHONE = ViewportSize(width=390, height=844)
DESKTOP = ViewportSize(width=1280, height=900)

# The theme's own header and side bars are not ours to mend; the article is. The thousands of
# nodes inside of formulas are MathJax's. Of axe's rules only contrast depends on the colours.
AXE_RUN = """more => axe.run(
  {include: [['article']], exclude: [['mjx-container']]},
  {resultTypes: ['violations'], preload: false, ...more})"""
AXE_FOR = {"light": {}, "dark": {"runOnly": ["color-contrast"]}}
UNTYPESET = """() => {
  const formulas = [...document.querySelectorAll('article .math')];
  const errors = document.querySelectorAll('mjx-merror, mjx-container [data-mjx-error]').length;
  return [formulas.length, formulas.filter(f => !f.querySelector('mjx-container')).length, errors];
}"""
WIDER = """() => {
  const over = document.scrollingElement.scrollWidth - window.innerWidth;
  if (over <= 0) return [];
  const inBox = e => { for (let p = e.parentElement; p; p = p.parentElement)
    if (/auto|scroll|hidden/.test(getComputedStyle(p).overflowX)) return true; return false; };
  return [...document.querySelectorAll('article *')]
    .filter(e => e.getBoundingClientRect().right > window.innerWidth + 1 && !inBox(e))
    .slice(0, 3).map(e => `${over} px: <${e.tagName.toLowerCase()} class="${e.className}">`);
}"""


def settle(page: Page) -> None:
    """Wait until a page has loaded and MathJax, where it has it, has set every formula.

    Not until the network is idle: now and then Chromium never says so of a page that is.
    """
    page.wait_for_load_state("load")
    page.evaluate("() => window.MathJax?.startup?.promise")
    page.wait_for_timeout(250)  # what scripts ask for after that


def picture_name(url: str) -> str:
    """Return what the pictures of a page are called: a chapter's main page is an index of many."""
    page = Path(urlsplit(url).path)
    return page.stem if page.stem != "index" else page.parent.name


def look(page: Page, url: str, pictures: Path | None) -> tuple[list[str], int]:
    """Return what is wrong with one page, and how many formulas it holds."""
    found: list[str] = []
    page.goto(url)
    settle(page)
    formulas, unset, errors = page.evaluate(UNTYPESET)
    if unset or errors:
        found.append(f"{unset} of {formulas} formulas not typeset, {errors} with an error")
    page.add_script_tag(path=str(AXE))
    for scheme, rules in AXE_FOR.items():
        page.evaluate("mode => { document.documentElement.dataset.theme = mode; }", scheme)
        page.wait_for_timeout(350)  # colours fade in; axe would measure them half-way
        for violation in page.evaluate(AXE_RUN, rules)["violations"]:
            places = violation["nodes"]
            first = places[0]["html"][:160]
            found.append(f"axe ({scheme}): {violation['id']}, {len(places)} place(s): {first}")
        if pictures:
            page.screenshot(path=pictures / f"{picture_name(url)}-{scheme}.png", full_page=True)
    page.evaluate("() => { document.documentElement.dataset.theme = 'light'; }")
    page.set_viewport_size(PHONE)
    page.wait_for_timeout(200)
    found += [f"wider than a phone by {line}" for line in page.evaluate(WIDER)]
    if pictures:
        page.screenshot(path=pictures / f"{picture_name(url)}-phone.png", full_page=True)
    page.set_viewport_size(DESKTOP)
    return found, formulas


def pages(site: Path) -> list[str]:
    """Return the addresses of the book's pages, longest first.

    Left out are Sphinx's own and those that only lead on: `leads_on` follows these.
    """
    found = [
        path
        for path in site.rglob("*.html")
        if not any(part.startswith("_") for part in path.relative_to(site).parts)
        and path.name not in ("genindex.html", "py-modindex.html", "search.html")
        and "<article" in path.read_text("utf-8")
    ]
    found.sort(key=lambda path: (-path.stat().st_size, path))
    return [path.relative_to(site).as_posix() for path in found]


@contextmanager
def served(site: Path) -> Iterator[str]:
    """Serve a site on this machine, and give its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            """Say nothing: a request a line would drown the findings."""

    class Server(http.server.ThreadingHTTPServer):
        request_queue_size = 128  # the 5 of the library turn connections of a busy page away

    server = Server(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()


def leads_on(site: Path, browser_path: str) -> list[str]:
    """Follow the old addresses in a browser: each must lead on and keep its anchor."""
    found = []
    published = json.loads(PUBLISHED.read_text("utf-8"))
    with served(site) as home, sync_playwright() as play:
        browser = play.chromium.launch(executable_path=browser_path, args=FLAGS)
        page = browser.new_page()
        for address, anchors in published.items():
            if "const moved" not in (site / address).read_text("utf-8"):
                continue
            for anchor in ("", anchors[0], anchors[-1]):
                page.goto(f"{home}{address}#{anchor}", wait_until="commit")
                wanted = f"[id='{anchor}']" if anchor else "article"
                try:
                    page.wait_for_selector(wanted, state="attached")
                except TimeoutError:
                    found.append(f"{address}#{anchor}: led to {page.url}")
                    continue
                place = urlsplit(page.url)
                if place.fragment != anchor or place.path == f"/{address}":
                    found.append(f"{address}#{anchor}: led to {page.url}")
        browser.close()
    return found


def check(
    site: Path, browser_path: str, pictures: Path | None, names: list[str]
) -> tuple[list[str], int]:
    """Open pages and return what is wrong with them, one line each, and their formulas' number."""
    found: list[str] = []
    total = 0
    with served(site) as home, sync_playwright() as play:
        browser = play.chromium.launch(executable_path=browser_path, args=FLAGS)
        context = browser.new_context(viewport=DESKTOP)
        here: list[str] = []

        def gate(route: Any) -> None:
            if route.request.url.startswith((home, "data:", "blob:")):
                route.continue_()
            else:
                here.append(f"asks for {route.request.url}")
                route.abort()

        context.route("**/*", gate)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda m: here.extend([f"console: {m.text}"] * (m.type == "error")))
        page.on("pageerror", lambda error: here.append(f"script error: {error}"))
        for name in names:
            here.clear()
            lines, formulas = look(page, home + name, pictures)
            total += formulas
            found += [f"{name}: {line}" for line in [*here, *lines]]
        browser.close()
    return found, total


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Open the built pages in Chromium and check them.")
    parser.add_argument("site", type=Path)
    parser.add_argument("--pictures", type=Path, help="folder for pictures of every page")
    parser.add_argument("--jobs", type=int, default=2, help="browsers at once")
    args = parser.parse_args()
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        print("no Chromium on this machine: the pages were NOT opened in a browser")
        return int(bool(os.environ.get("CI")))
    if args.pictures:
        args.pictures.mkdir(parents=True, exist_ok=True)
    names = pages(args.site)
    shares = [names[k :: args.jobs] for k in range(args.jobs)]
    with ProcessPoolExecutor(args.jobs) as pool:
        look_at = functools.partial(check, args.site, browser, args.pictures)
        results = list(pool.map(look_at, shares))
    found = sorted(line for lines, _ in results for line in lines)
    found += leads_on(args.site, browser)
    formulas = sum(count for _, count in results)
    print(f"{len(names)} pages opened, {formulas} formulas, {len(found)} findings")
    print(
        "\n".join(found)
        or "no request leaves, no console error, nothing wider than a phone, no old address lost"
    )
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
