"""Pages in headless Chromium at the width of a phone and of a laptop, light and dark: what is wrong with them."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

WIDTHS = (390, 1280)
SCHEMES = ("light", "dark")
PATIENCE_MS = 300_000
# Text that stands beyond the right edge of the window and that no scrolling brings there.
_CUT_OFF = """() => {
  const found = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const range = document.createRange(), text = walker.currentNode.textContent.trim();
    range.selectNodeContents(walker.currentNode);
    const box = range.getBoundingClientRect();
    if (!text || box.width < 2 || box.height < 2 || box.right <= innerWidth + 1 || box.left > innerWidth) continue;
    let at = walker.currentNode.parentElement;
    while (at && !["auto", "scroll"].includes(getComputedStyle(at).overflowX)) at = at.parentElement;
    if (!at) found.add(text.slice(0, 40));
  }
  return [...found];
}"""
# Text whose contrast with what is behind it is below what WCAG 2 asks for. Pictures are not looked into.
_FAINT = """least => {
  const parse = text => (text.match(/[\\d.]+/g) || []).map(Number);
  const over = (top, below) => {
    const share = top.length > 3 ? top[3] : 1;
    return [0, 1, 2].map(at => share * top[at] + (1 - share) * below[at]);
  };
  const behind = element => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) {
      const style = getComputedStyle(at);
      if (style.backgroundImage !== "none") return null;
      layers.push(parse(style.backgroundColor));
    }
    const page = matchMedia("(prefers-color-scheme: dark)").matches ? [18, 18, 18] : [255, 255, 255];
    return layers.reverse().reduce((below, top) => over(top, below), page);
  };
  const light = color => {
    const [r, g, b] = color.map(value => {
      const share = value / 255;
      return share <= 0.03928 ? share / 12.92 : Math.pow((share + 0.055) / 1.055, 2.4);
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, text = walker.currentNode.textContent.trim();
    const box = element.getBoundingClientRect(), style = getComputedStyle(element);
    if (!text || box.width < 2 || box.height < 2 || style.visibility === "hidden" || style.opacity < 1) continue;
    const back = behind(element);
    if (back === null) continue;
    const [high, low] = [light(over(parse(style.color), back)), light(back)].sort((a, b) => b - a);
    const size = parseFloat(style.fontSize);
    const asked = size >= 24 || (size >= 18.5 && style.fontWeight >= 700) ? Math.min(least, 3) : least;
    const contrast = (high + 0.05) / (low + 0.05);
    if (contrast < asked) found.add(`${text.slice(0, 40)}: ${contrast.toFixed(2)}`);
  }
  return [...found];
}"""


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium."""
    program = shutil.which("chromium")
    assert program, "chromium is not installed: apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program)
        yield browser
        browser.close()


@dataclass
class Looks:
    """What is wrong with a page at one width and in one scheme."""

    wide: list[str] = field(default_factory=list)
    faint: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@contextlib.contextmanager
def looked_at(
    browser: Browser, url: str, width: int, scheme: str, *, least_contrast: float = 4.5, picture: Path | None = None
) -> Iterator[tuple[Page, Looks]]:
    """Open a page; when the block ends, look at it.

    Args:
        browser (`Browser`): Of `chromium`.
        url (`str`): The page.
        width (`int`): Of the window, in pixels.
        scheme (`str`): `light` or `dark`, as the reader's machine prefers.
        least_contrast (`float`, defaults to 4.5): What small text must have; 3 suffices for large one.
        picture (`Path`, *optional*): Where a picture of the whole page goes, for a person to look at.
    """
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page, looks = context.new_page(), Looks()
    page.set_default_timeout(PATIENCE_MS)
    page.on("console", lambda message: looks.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: looks.errors.append(str(error)))
    page.goto(url)
    yield page, looks
    over = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    looks.wide = [*([f"{over} pixels"] if over > 0 else []), *page.evaluate(_CUT_OFF)]
    looks.faint = page.evaluate(_FAINT, least_contrast)
    if picture is not None:
        page.screenshot(path=picture, full_page=True)
    context.close()


def problems(browser: Browser, url: str, **options: float) -> list[str]:
    """What is wrong with a page at each width and in each scheme; empty when it is sound."""
    found = []
    for width, scheme in itertools.product(WIDTHS, SCHEMES):
        with looked_at(browser, url, width, scheme, **options) as (_, looks):
            pass
        found += [f"{width} px, {scheme}: {name}: {each}" for name, each in vars(looks).items() if each]
    return found
