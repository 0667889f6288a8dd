"""The pictures of the README: Chromium photographs parts of the report page of a run, into scripts/pictures/.

    charlm train --config stdlib --sample.every 100 --evaluate.every 500
    python scripts/pictures.py runs/stdlib
    python scripts/pictures.py runs/stdlib --pages looks    the whole page: three widths, light and dark

Needs `pip install 'charlm[test]'`, and Chromium with its driver (`apt-get install chromium chromium-driver`).
"""

from __future__ import annotations

import argparse
import base64
import io
import shutil
import sys
import tempfile
from pathlib import Path

from charlm.report.page import write_page

FOLDER = Path(__file__).with_name("pictures")
WIDTHS = 390, 768, 1280  # pixels: a phone, a tablet, a computer
# picture → (width, what is done on the page before, which returns the elements that it shows)
PARTS = {
    "learning": (
        980,
        """
const all = [...document.querySelectorAll("#samples figure")];
const three = [all[0], all[Math.floor(all.length / 2)], all.at(-1)];
document.querySelector("main").replaceChildren(document.querySelector("#training figure"), ...three);
show(`main { display: grid; grid-template-columns: 1fr 1fr; gap: 8px 24px; padding: 12px }
  svg { width: 100% } main figure:first-child { grid-row: 1 / 4; align-self: center }
  pre { padding: 0 12px; font-size: 12px } pre span { display: -webkit-box; -webkit-line-clamp: 5;
  -webkit-box-orient: vertical; overflow: hidden; margin: 8px 0 }`);
for (const pre of document.querySelectorAll("pre")) {
  const span = document.createElement("span");
  span.append(...pre.childNodes);
  pre.append(span);
}
return ["main"];
""",
    ),
    "surprise": (
        760,
        """
document.querySelector("main")
  .replaceChildren(...document.querySelectorAll("#surprise .legend, #surprise-text"));
show("main { padding: 12px } .text { height: 330px }");
// a letter in the middle of the picture that was not the first guess
const guessed = (e) => {
  const { left, top } = e.getBoundingClientRect();
  if (left < 250 || top < 180 || !/\\w/.test(e.textContent)) return false;
  e.dispatchEvent(new PointerEvent("pointerover", { bubbles: true, pointerType: "mouse" }));
  return document.querySelector("#tip li.true:not(:first-child)");
};
[...document.querySelectorAll("#surprise-text span")].find(guessed);
return ["main", "#tip"];
""",
    ),
    "cell": (
        760,
        """
const fact = document.querySelector("#cells button.cell").closest("tr").querySelector("small").textContent;
document.querySelector("main").replaceChildren(...document.querySelectorAll("#cells .legend, #cell-text"));
document.querySelector("#match").append(" (" + fact + ")");
show("main { padding: 12px } .text { height: 232px }");
return ["main"];
""",
    ),
}
# For the scripts above: style, without the rest of the page.
SHOW = """
const show = (style) => {
  document.querySelectorAll("header, footer").forEach((e) => e.remove());
  document.head.append(Object.assign(document.createElement("style"), { textContent: style }));
};
"""
BOX = """
const boxes = arguments[0].map((s) => document.querySelector(s).getBoundingClientRect());
const [left, top] = ["left", "top"].map((side) => Math.min(...boxes.map((b) => b[side])));
const [right, bottom] = ["right", "bottom"].map((side) => Math.max(...boxes.map((b) => b[side])));
return { x: left + scrollX, y: top + scrollY, width: right - left, height: bottom - top };
"""


def chromium():
    """A browser without a window. Raises FileNotFoundError where Chromium or its driver is missing."""
    from selenium import webdriver

    driver, program = shutil.which("chromedriver"), shutil.which("chromium")
    if not (driver and program):
        raise FileNotFoundError("no browser: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    browser.set_page_load_timeout(120)
    browser.set_script_timeout(120)
    return browser


def set_screen(browser, width: int, theme: str = "light", media: str = "screen") -> None:
    """The screen of a device of so many CSS pixels; theme: light or dark."""
    shape = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", shape)
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})


def photograph(browser, path: Path, elements: list[str], scale: float = 1) -> None:
    """Write a PNG of 256 colours of the part of the page that holds the elements (CSS selectors)."""
    from PIL import Image

    clip = browser.execute_script(BOX, elements) | {"scale": scale}
    wanted = {"clip": clip, "captureBeyondViewport": True}
    png = base64.b64decode(browser.execute_cdp_cmd("Page.captureScreenshot", wanted)["data"])
    image = Image.open(io.BytesIO(png)).convert("RGB")
    image.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(path, optimize=True)


def take_pictures(run: str, pages: Path | None = None, folder: Path = FOLDER) -> list[Path]:
    """Write the pictures of a run to the folder, and of the whole page to `pages`. Returns their paths."""
    taken = []
    browser = chromium()
    try:
        with tempfile.TemporaryDirectory() as temporary:
            page, missing = write_page(run, str(Path(temporary) / "report.html"), None, "cpu")
            print(*missing, sep="\n", end="\n" * bool(missing))
            folder.mkdir(exist_ok=True)
            for name, (width, script) in PARTS.items():
                set_screen(browser, width)
                browser.get(page.as_uri())
                taken.append(folder / f"{name}.png")
                photograph(browser, taken[-1], browser.execute_script(SHOW + script), scale=1.5)
            for width in WIDTHS if pages is not None else ():
                for theme in ("light", "dark"):
                    pages.mkdir(parents=True, exist_ok=True)
                    set_screen(browser, width, theme)
                    browser.get(page.as_uri())
                    taken.append(pages / f"{width}-{theme}.png")
                    photograph(browser, taken[-1], ["html"])
    finally:
        browser.quit()
    return taken


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="a run directory with samples and held-out text")
    parser.add_argument("--pages", metavar="FOLDER", type=Path, help="photograph the whole page, too")
    options = parser.parse_args(words)
    for path in take_pictures(options.run, options.pages):
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
