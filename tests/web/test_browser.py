"""The page in a real browser: upload, ask, click, and two visitors at once."""

from __future__ import annotations

import json
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_retriever import FakeRetriever

from momentdetr.web import Running, serve

pytestmark = pytest.mark.browser
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SECONDS = 30_000
"""For a slow machine, milliseconds."""


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    page = serve(FakeRetriever(), port=0, block=False)
    yield page
    page.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="not run: needs playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("not run: needs chromium on the PATH (Debian: apt-get install chromium)")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS, headless=True)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Any, running: Running) -> Iterator[Callable[[], Any]]:
    """Opens the page as a new visitor with nothing remembered; fails if it asks another server for anything."""
    contexts, foreign = [], []

    def open_page() -> Any:
        context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(SECONDS)
        own = (running.url, "data:", f"blob:{running.url}")
        page.on("request", lambda request: None if request.url.startswith(own) else foreign.append(request.url))
        page.on("dialog", lambda dialog: foreign.append(f"dialog {dialog.message}"))
        page.goto(running.url)
        page.wait_for_selector("#md-go")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert foreign == []


def _upload(page: Any, path: Path) -> None:
    page.set_input_files("#md-player input[type=file]", str(path))
    page.wait_for_selector("#md-player video")
    page.wait_for_function("name => document.querySelector('#md-notice').innerText.includes(name)", arg=path.name)


def _search(page: Any, queries: str) -> None:
    page.fill("#md-queries textarea", queries)
    page.click("#md-go")
    page.wait_for_function("document.querySelector('#md-notice').innerText.includes('moments')")


def _time(page: Any) -> float:
    return float(page.evaluate("document.querySelector('#md-player video').currentTime"))


def test_upload_search_click_and_the_moment_plays(visit: Callable[[], Any], video: Path) -> None:
    page = visit()
    _upload(page, video)
    _search(page, "from 7 to 9.5 and from 2 to 3\nnowhere")
    assert page.locator("#md-line .md-band").count() == 2
    assert page.locator("#md-line .md-badge").inner_text() == "probably not in this video"
    for selector, start, end in (("#md-line .md-band", 7.0, 9.5), ("#md-found .md-item >> nth=1", 2.0, 3.0)):
        page.locator(selector).first.click()
        page.wait_for_function(
            "([a, b]) => { const t = document.querySelector('#md-player video').currentTime; return t > a && t < b; }",
            arg=[start, end],
        )
        page.wait_for_function("!document.querySelector('#md-player video').paused || true")
        assert start < _time(page) < end
    page.wait_for_function("document.querySelector('#md-player video').paused")  # it stops where the moment ends
    assert _time(page) == pytest.approx(3.0, abs=0.6)


def test_the_picture_belongs_to_the_time(visit: Callable[[], Any], video: Path) -> None:
    page = visit()
    _upload(page, video)
    _search(page, "from 9 to 11")
    page.click("#md-line .md-band")
    page.wait_for_function("document.querySelector('#md-player video').currentTime > 9")
    # A bar of half the brightness grows from the left: its right edge tells the time that is really shown.
    edge = page.evaluate(
        """() => new Promise(done => {
            const video = document.querySelector('#md-player video');
            video.pause();
            const look = () => {
                const canvas = document.createElement('canvas');
                canvas.width = 128; canvas.height = 96;
                const drawing = canvas.getContext('2d');
                drawing.drawImage(video, 0, 0, 128, 96);
                const row = drawing.getImageData(0, 48, 128, 1).data;
                let dark = 0;
                for (let x = 0; x < 128; x++) if (row[4 * x] < 150) dark++;
                done([dark, video.currentTime]);
            };
            video.requestVideoFrameCallback ? setTimeout(look, 300) : look();
        })"""
    )
    dark, time_s = edge
    assert 9.0 < time_s < 11.0
    assert dark / 128 * 12.0 == pytest.approx(time_s, abs=0.35)


def test_a_click_on_the_time_line_goes_there(visit: Callable[[], Any], video: Path) -> None:
    page = visit()
    _upload(page, video)
    _search(page, "from 1 to 2")
    box = page.locator("#md-line .md-track").bounding_box()
    page.mouse.click(box["x"] + 0.75 * box["width"], box["y"] + box["height"] / 2)
    page.wait_for_function("document.querySelector('#md-player video').currentTime > 8.5")
    assert _time(page) == pytest.approx(9.0, abs=1.0)


def test_two_visitors_do_not_see_each_other(
    visit: Callable[[], Any], make_video: Callable[[str, float, int], Path]
) -> None:
    anna, ben = visit(), visit()
    _upload(anna, make_video("anna.mp4", 6.0, 220))
    _upload(ben, make_video("ben.mp4", 10.0, 60))
    _search(anna, "from 1 to 99")
    _search(ben, "from 2 to 99")
    for page, start, end, own, other in ((anna, 1.0, 6.0, "anna", "ben"), (ben, 2.0, 10.0, "ben", "anna")):
        band = page.locator("#md-line .md-band")
        assert band.count() == 1
        assert float(band.get_attribute("data-start")) == start
        assert float(band.get_attribute("data-end")) == pytest.approx(end, abs=0.11)
        length = page.evaluate("document.querySelector('#md-player video').duration")
        assert length == pytest.approx(end, abs=0.2)
        with page.expect_download() as download:
            page.click("#md-json")
        saved = json.loads(Path(download.value.path()).read_text())
        assert saved["video"] == own
        assert other not in page.content()


def test_clips_come_as_one_archive(visit: Callable[[], Any], video: Path) -> None:
    page = visit()
    _upload(page, video)
    _search(page, "from 1 to 2 and from 5 to 7")
    with page.expect_download() as download:
        page.click("#md-cut")
    assert download.value.suggested_filename.endswith("_clips.zip")
    with zipfile.ZipFile(download.value.path()) as archive:
        assert len(archive.namelist()) == 2


def test_what_a_visitor_writes_stays_text(visit: Callable[[], Any], video: Path, tmp_path: Path) -> None:
    strange = tmp_path / "<img src=x onerror=alert(1)>.mp4"
    shutil.copy(video, strange)
    page = visit()
    page.set_input_files("#md-player input[type=file]", str(strange))
    page.wait_for_function("document.querySelector('#md-notice').innerText.includes('12.0 s')")
    query = '<img src=x onerror="alert(2)"> ${alert(3)} {{value}} from 1 to 2'
    _search(page, query)
    assert page.locator("#md-found .md-text").inner_text() == query
    assert page.locator("#md-found img, #md-line img, #md-notice img").count() == 0


def test_mistakes_are_said_on_the_page(visit: Callable[[], Any], video: Path, tmp_path: Path) -> None:
    page = visit()
    page.fill("#md-queries textarea", "from 1 to 2")
    page.click("#md-go")
    page.wait_for_selector("#md-notice .md-error")
    assert "no video yet" in page.locator("#md-notice").inner_text()
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video")
    page.set_input_files("#md-player input[type=file]", str(broken))
    page.wait_for_function("document.querySelector('#md-notice').innerText.includes('broken.mp4')")
    _upload(page, video)
    page.fill("#md-queries textarea", "x" * 5000)
    page.click("#md-go")
    page.wait_for_function("document.querySelector('#md-notice').innerText.includes('characters')")
    _search(page, "from 1 to 2")  # and it goes on
    assert page.locator("#md-found .md-item").count() == 1


def test_who_closes_the_tab_leaves_nothing_behind(visit: Callable[[], Any], video: Path, running: Running) -> None:
    page = visit()
    _upload(page, video)
    _search(page, "from 1 to 2")
    kept = set((running.folder / "visitors").iterdir())
    assert kept
    page.close()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and kept & set((running.folder / "visitors").iterdir()):
        time.sleep(0.2)
    assert not kept & set((running.folder / "visitors").iterdir())


def test_an_example_is_one_click_away(visit: Callable[[], Any]) -> None:
    page = visit()
    page.click("text=Example 2")
    page.wait_for_function("document.querySelector('#md-notice').innerText.includes('example_2.mp4')")
    assert len(page.input_value("#md-queries textarea").splitlines()) == 4
    page.wait_for_function("document.querySelector('#md-player video').duration > 10")
