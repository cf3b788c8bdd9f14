"""Take the picture page.png: `python docs/images/page.py` (needs playwright and chromium; serves the demo model)."""

from __future__ import annotations

import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

from momentdetr.web import serve

EXAMPLE = 3
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]


def main() -> None:
    running = serve("demo", port=0, block=False)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        page.set_default_timeout(120_000)
        page.goto(f"{running.url}?__theme=light")
        page.click(f"text=Example {EXAMPLE}")
        page.wait_for_function(f"document.querySelector('#md-notice').innerText.includes('example_{EXAMPLE}.mp4')")
        page.click("#md-go")
        page.wait_for_function("document.querySelector('#md-notice').innerText.includes('moments')")
        page.click("#md-found .md-item >> nth=0")
        page.wait_for_timeout(1500)
        page.evaluate("document.querySelector('#md-player video').pause(); document.activeElement.blur()")
        page.mouse.move(2, 2)
        page.wait_for_timeout(600)
        page.screenshot(path=Path(__file__).with_name("page.png"), full_page=True)
        browser.close()
    running.close()


if __name__ == "__main__":
    main()
