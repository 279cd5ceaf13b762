"""The page in headless Chromium: upload, click, read the answer."""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from looks import SCHEMES, WIDTHS, chromium, looked_at
from playwright.sync_api import Browser, Page, expect

import mmhf
from mmhf.inference.demo.server import served_demo
from mmhf.inference.demo.subjects import load_subject

pytestmark = pytest.mark.slow

CAPTIONS = ["a red frog", "a lamp", "weapon on a shield"]
PATIENCE_MS = 300_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def open_demo(browser, tiny_model) -> Iterator:
    """Serve a tiny model of a family and open its page, which may ask nothing of other machines."""
    asked: list[str] = []
    with ExitStack() as stack:

        def start(family: str) -> Page:
            served = served_demo(load_subject(tiny_model(family), captions=CAPTIONS), name=f"releases/{family}@v1.0")
            url = stack.enter_context(served)
            page = browser.new_page()
            stack.callback(page.close)
            page.set_default_timeout(PATIENCE_MS)
            page.on("request", lambda request: asked.append(request.url))
            page.goto(url)
            page.wait_for_selector("#ask")
            return page

        yield start
    assert asked
    assert [url for url in asked if not url.startswith(("http://127.0.0.1:", "data:", "blob:"))] == []


def choose(page: Page, path: Path) -> None:
    page.set_input_files("#image input[type=file]", path)


def upload(page: Page, path: Path) -> None:
    choose(page, path)
    page.wait_for_selector("#image img")


def ask(page: Page, text: str | None = None) -> None:
    if text is not None:
        page.fill("#text textarea", text)
    page.click("#ask")


def write_square_png(path: Path, side: int) -> Path:
    """A sound PNG of one colour, a few hundred kilobytes however large its square is."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    compress = zlib.compressobj(1)
    row = bytes(1 + (side + 7) // 8)
    pixels = b"".join(compress.compress(row) for _ in range(side)) + compress.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    return path


def test_fusion_classifier(open_demo, tiny_model, picture):
    page = open_demo("fusion")
    upload(page, picture)
    ask(page, "a red frog")
    best = mmhf.pipeline("image-text-classification", model=str(tiny_model("fusion")))(
        image=str(picture), text="a red frog", top_k=1
    )[0]
    expect(page.locator("#label")).to_contain_text(best["label"], timeout=PATIENCE_MS)
    expect(page.locator("#label")).to_contain_text(f"{best['score']:.0%}")
    page.wait_for_selector("#heat img")
    expect(page.locator("#words .token, #words .textspan").first).to_be_visible()
    assert page.locator("#words").inner_text().split()[-3:] == ["a", "red", "frog"]


def test_the_page_is_called_by_the_release_and_does_not_take_it_for_an_address(open_demo):
    page = open_demo("fusion")
    expect(page.locator("#title h1")).to_have_text("releases/fusion@v1.0")
    assert page.locator("#title a").count() == 0


def test_image_classifier(open_demo, tiny_model, picture):
    page = open_demo("image classifier")
    assert not page.locator("#text").is_visible()
    upload(page, picture)
    ask(page)
    best = mmhf.pipeline("image-classification", model=str(tiny_model("image classifier")))(str(picture))[0]
    expect(page.locator("#label")).to_contain_text(best["label"], timeout=PATIENCE_MS)
    expect(page.locator("#label")).to_contain_text(f"{best['score']:.0%}")
    page.wait_for_selector("#heat img")


def test_captioner(open_demo, tiny_model, picture):
    page = open_demo("captioner")
    upload(page, picture)
    ask(page)
    caption = mmhf.pipeline("image-captioning", model=str(tiny_model("captioner")))(str(picture))[0]["caption"]
    expect(page.locator("#caption textarea")).to_have_value(caption, timeout=PATIENCE_MS)


def test_dual_encoder(open_demo, picture):
    page = open_demo("dual encoder")
    upload(page, picture)
    ask(page, "")
    for caption in CAPTIONS:
        expect(page.locator("#nearest")).to_contain_text(caption, timeout=PATIENCE_MS)
    ask(page, "frog, lamp")
    expect(page.locator("#label")).to_contain_text("frog", timeout=PATIENCE_MS)
    page.wait_for_selector("#heat img")


def test_the_page_fits_a_phone_and_follows_the_scheme_of_the_machine(browser, tiny_model):
    backgrounds = {}
    with served_demo(load_subject(tiny_model("fusion"), captions=CAPTIONS), name="releases/fusion@v1.0") as url:
        for width, scheme in itertools.product(WIDTHS, SCHEMES):
            with looked_at(browser, url, width, scheme) as (page, looks):
                page.wait_for_selector("#ask")
                page.locator("table tbody tr").first.click()
                page.wait_for_selector("#image img")
                ask(page)
                page.wait_for_selector("#heat img")
                backgrounds[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
                shown = page.locator("body").inner_text()
                assert "/tmp" not in shown and str(Path.home()) not in shown
            assert (looks.wide, looks.faint, looks.errors) == ([], [], []), (width, scheme)
    assert backgrounds["light"] != backgrounds["dark"]


def test_an_example_is_one_click_away(open_demo):
    page = open_demo("fusion")
    row = page.locator("table tbody tr").first
    text = row.inner_text().strip()
    row.click()
    page.wait_for_selector("#image img")
    expect(page.locator("#text textarea")).to_have_value(text, timeout=PATIENCE_MS)
    ask(page)
    page.wait_for_selector("#heat img")


def test_what_is_no_usable_image_is_refused_with_a_reason_and_the_page_lives(open_demo, picture, tmp_path):
    page = open_demo("fusion")
    notice = page.locator("#notice")

    html = tmp_path / "page.jpg"
    html.write_text("<html><body>no picture</body></html>")
    choose(page, html)
    expect(notice).to_contain_text("Refused: not an image (starts with b'<html>", timeout=PATIENCE_MS)

    choose(page, write_square_png(tmp_path / "bomb.png", 50_000))
    expect(notice).to_contain_text("Refused: too large: more than", timeout=PATIENCE_MS)
    expect(page.locator("#image img")).to_have_count(0)

    large = tmp_path / "large.jpg"
    with large.open("wb") as stream:
        stream.write(b"\xff\xd8\xff")
        stream.truncate(100_000_000)
    choose(page, large)
    expect(page.locator(".toast-body")).to_contain_text("exceed the maximum allowed size", timeout=PATIENCE_MS)

    ask(page, "a red frog")
    expect(notice).to_contain_text("no image is chosen", timeout=PATIENCE_MS)

    upload(page, picture)
    ask(page, "a red frog")
    expect(page.locator("#label")).to_contain_text("%", timeout=PATIENCE_MS)
    expect(notice).to_have_text("")
