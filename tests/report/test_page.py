"""charlm report: the page in a real browser, and its text for complete and incomplete runs."""

import json
import re
import shutil
import sys
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, changed, small
from pictures import PARTS, chromium, set_screen, take_pictures

from charlm.commands.cli import main
from charlm.errors import CharlmError
from charlm.model.char_lm import CharLM
from charlm.report.page import read_run, render, write_page
from charlm.training.loop import train

# Quotes and braces for cells to track, a character spelled in bytes, and markup.
LINE = "def f(x): return g(\"</script><b id=broken>&amp;\", 'y')  # \x01 é{}\n    pass\n\n"
TEXT = "".join(LINE.replace("f", name) for name in "abcdefghiж" * 12)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with held-out text, validation figures and samples."""
    config = small(
        tmp_path_factory.mktemp("page") / "run <b>&amp;",
        data={"text": TEXT},
        vocab={"unknown": "bytes", "coverage": 0.99, "end_of_document": True},
        model={"num_layers": 2},
        train={"steps": 30},
        evaluate={"every": 10, "lanes": 2, "context": 8},
        sample={"every": 10, "prompt": "</script><b id=broken>"},
    )
    train(config, quiet=True)
    return config


@pytest.fixture(scope="module")
def page(run):
    main(["report", run.run_dir])
    return Path(run.run_dir) / "report.html"


class Read(HTMLParser):
    """The text of a page, its ids, and the data of its script; every link leads somewhere."""

    def __init__(self, page: str | Path):
        super().__init__()
        self.ids, self.links, self.text, self.data, self._inside = [], [], "", None, ""
        self.feed(Path(page).read_text(encoding="utf-8"))
        assert {*self.links} <= {*self.ids}

    def handle_starttag(self, tag, attributes):
        self.ids += [value for name, value in attributes if name == "id"]
        self.links += [value[1:] for name, value in attributes if name == "href" and value[0] == "#"]
        self._inside = dict(attributes).get("id", tag) if tag in ("script", "style") else ""

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside == "data":
            self.data = json.loads(data)
        elif not self._inside:
            self.text += " ".join(data.split()) + " "


def written(where, output, text=None) -> Read:
    path, _ = write_page(str(where), output, text, "cpu")
    return Read(path)


# in a browser


@pytest.fixture(scope="module")
def browser():
    pytest.importorskip("selenium.webdriver")
    try:
        browser = chromium()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    yield browser
    browser.quit()


@pytest.fixture
def opened(browser, page):
    """The page at 1280 pixels, light; size(width, theme, media) changes that."""
    browser.size = partial(set_screen, browser)
    browser.size(1280)
    browser.get(page.as_uri())
    return browser


def tip(browser) -> str:
    return browser.find_element("id", "tip").text


def test_the_page_shows_every_section_requests_nothing_and_logs_no_error(opened):
    sections = [e.get_attribute("id") for e in opened.find_elements("css selector", "section")]
    assert sections == [
        "training",
        "results",
        "samples",
        "surprise",
        "cells",
        "context",
        "neighbours",
        "corpus",
        "terms",
    ]
    assert len(opened.find_elements("css selector", "#training svg")) == 5
    assert [e["message"] for e in opened.get_log("browser")] == []
    events = [json.loads(e["message"])["message"] for e in opened.get_log("performance")]
    requested = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert {url for url in requested if not url.startswith("data:")} == {opened.current_url}


def test_markup_in_text_is_shown_as_text(opened):
    assert opened.find_elements("id", "broken") == []
    assert opened.find_element("tag name", "h1").text == "run <b>&amp;"
    shown = opened.find_element("id", "surprise-text").get_attribute("textContent")
    assert '"</script><b id=broken>&amp;"' in shown and "␁" in shown
    assert "</script><b id=broken>" in opened.find_element("id", "samples").text


def test_guesses_are_shown_under_the_pointer_and_by_the_keyboard(opened):
    from selenium.webdriver import ActionChains, Keys

    text = opened.find_element("id", "surprise-text")
    third = text.find_elements("css selector", "span")[3]
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", text)
    ActionChains(opened).move_to_element(third).perform()
    by_pointer = tip(opened)
    assert re.search(r"[\d.]+ bits: probability [\d.]+ %", by_pointer)
    assert len(opened.find_elements("css selector", "#tip li")) == 5
    ActionChains(opened).move_to_element(opened.find_element("css selector", "#surprise h2")).perform()
    assert not opened.find_element("id", "tip").is_displayed()

    before = opened.find_element("css selector", "#samples pre:last-child")
    opened.execute_script("arguments[0].focus()", before)
    while opened.switch_to.active_element.get_attribute("id") != "surprise-text":
        ActionChains(opened).send_keys(Keys.TAB).perform()
    keys = ActionChains(opened)
    keys.send_keys(Keys.HOME).perform()
    assert "first symbol: not predicted" in tip(opened)
    keys.send_keys(Keys.ARROW_RIGHT * 3).perform()
    assert tip(opened) == by_pointer
    keys.send_keys(Keys.ARROW_DOWN).perform()
    assert opened.find_element("css selector", "#surprise-text .at").location["y"] > third.location["y"]
    keys.send_keys(Keys.ESCAPE).perform()
    assert not opened.find_element("id", "tip").is_displayed()


def test_another_cell_is_another_heat_map(opened):
    from selenium.webdriver.support.ui import Select

    def colours() -> list[str]:
        return opened.execute_script(
            "return [...document.querySelectorAll('#cell-text span')].map(e => e.style.backgroundColor)"
        )

    select = Select(opened.find_element("id", "cell"))
    first = colours()
    select.select_by_index(len(select.options) - 1)
    last = colours()
    assert len(set(first)) > 5 and len(set(last)) > 5 and first != last
    opened.find_element("id", "before").click()
    assert colours() != last
    button = opened.find_elements("css selector", "button.cell")[0]
    button.click()
    assert button.get_attribute("aria-pressed") == "true" and colours() == first


def test_the_page_fits_the_screen_and_has_contrast(opened):
    root, papers = "document.documentElement", []
    screens = [(390, "light"), (390, "dark"), (1280, "light"), (1280, "dark"), (700, "dark", "print")]
    for width, theme, *media in screens:
        opened.size(width, theme, *media)
        wide = opened.execute_script(f"return [innerWidth, {root}.scrollWidth - {root}.clientWidth]")
        assert wide == [width, 0], theme
        contrast = opened.execute_script(CONTRAST, CHECKED)
        assert set(contrast) == {*CHECKED, "surprise", "cell"}
        assert min(contrast.values()) >= 4.5, (theme, contrast)
        papers.append(opened.execute_script("return getComputedStyle(document.body).backgroundColor"))
    assert len(set(papers)) == 3 and papers[-1] == "rgb(255, 255, 255)"  # print is light in any theme


def test_tables_fit_a_phone_without_scrolling(opened):
    """With the figures of a large corpus, too."""
    opened.size(390)
    wide = opened.execute_script("""
        document.querySelectorAll(".splits td.n, .bars .n").forEach((e) => e.textContent = "20,123,456,789");
        const right = (e) => e.getBoundingClientRect().right;
        const beyond = (e) => right(e) > innerWidth || e.scrollWidth > e.clientWidth + 1;
        return [...document.querySelectorAll("main *")]
          .filter((e) => e.clientWidth && !e.closest("svg, select") && beyond(e))
          .map((e) => e.outerHTML.slice(0, 90))""")
    assert len(opened.find_elements("tag name", "table")) >= 5 and wide == []


def test_grids_have_no_holes(opened):
    """For any number of plots and samples, in one column and in two."""
    for width, columns in ((390, 1), (768, 2), (1280, 2)):
        opened.size(width)
        opened.refresh()
        for _ in range(4):
            assert set(opened.execute_script(FILLED)) == {f"{columns} columns, 0 over"}
            opened.execute_script(LESS)


FILLED = """
return [...document.querySelectorAll(".plots, .samples")].map((grid) => {
  const columns = getComputedStyle(grid).gridTemplateColumns.split(" ").length;
  const cells = [...grid.children].map((e) => getComputedStyle(e).gridColumnEnd === "-1" ? columns : 1);
  return `${columns} columns, ${cells.reduce((a, b) => a + b) % columns} over`;
});
"""
LESS = """
const last = "#training figure:last-child, #samples figure:last-child:not(:only-child)";
document.querySelectorAll(last).forEach((e) => e.remove());
"""


def test_a_term_is_explained_by_pointer_keyboard_and_finger(opened):
    from selenium.webdriver import ActionChains, Keys
    from selenium.webdriver.common.actions import interaction
    from selenium.webdriver.common.actions.action_builder import ActionBuilder
    from selenium.webdriver.common.actions.pointer_input import PointerInput

    opened.execute_script("scrollTo(0, 0)")
    lanes, nats = (
        opened.find_element("css selector", f"a.term[href='#term-{of}']") for of in ("lane", "nat")
    )
    ActionChains(opened).move_to_element(lanes).perform()
    assert "read side by side" in tip(opened)
    ActionChains(opened).move_to_element(opened.find_element("tag name", "h1")).perform()
    assert not opened.find_element("id", "tip").is_displayed()
    opened.execute_script("arguments[0].focus({ focusVisible: true })", nats)
    assert "1 nat is 1.44 bits" in tip(opened)
    ActionChains(opened).send_keys(Keys.ESCAPE).perform()
    assert not opened.find_element("id", "tip").is_displayed()
    ActionChains(opened).send_keys(Keys.ENTER).perform()
    assert opened.current_url.endswith("#term-nat")

    opened.size(390)
    opened.get(opened.current_url.split("#")[0])
    opened.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    finger = ActionBuilder(opened, mouse=PointerInput(interaction.POINTER_TOUCH, "finger"))
    finger.pointer_action.move_to(opened.find_element("css selector", "a.term")).pointer_down().pointer_up()
    finger.perform()
    assert tip(opened) and "#" not in opened.current_url
    opened.find_element("tag name", "h1").click()
    assert not opened.find_element("id", "tip").is_displayed()
    opened.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})


CHECKED = ["p", ".note", "figcaption", "thead th", "tr.baseline td", "nav a", "pre", "select"]
CHECKED += [".legend", "dt", "small", ".sign", ".byte", "a.term", ".about li", ".terms dd"]
# Contrast by WCAG 2 of texts with their background; translucent colours are blended.
CONTRAST = """
const style = e => getComputedStyle(e);
const parts = c => { const n = c.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n };
const over = (top, under) => [0, 1, 2].map(i => top[3] * top[i] + (1 - top[3]) * under[i]).concat(1);
const behind = e => e ? over(parts(style(e).backgroundColor), behind(e.parentElement)) : [255, 255, 255, 1];
const linear = v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const light = c => [0.2126, 0.7152, 0.0722].reduce((sum, w, i) => sum + w * linear(c[i] / 255), 0);
const depth = e => parts(style(e).backgroundColor)[3];
const most = box => [...document.querySelectorAll(box + ' span:not([class])')]
  .reduce((a, b) => depth(a) < depth(b) ? b : a);
const found = {};
const chosen = arguments[0].map(s => [s, document.querySelector(s)]).filter(([, e]) => e);
for (const [name, e] of [...chosen, ['surprise', most('#surprise-text')], ['cell', most('#cell-text')]]) {
  const back = behind(e), front = over(parts(style(e).color), back);
  const [a, b] = [light(front), light(back)].sort((x, y) => y - x);
  found[name] = (a + 0.05) / (b + 0.05);
}
return found;
"""


# its text


def test_figures_and_baselines_are_in_the_table(page, run):
    read = Read(page)
    best = json.loads((Path(run.run_dir) / "status.json").read_text())["best"]
    assert f"{best['bpc']:.4f}" in read.text and "2 lanes, 8 symbols of context" in read.text
    assert "Witten-Bell" in read.text and "xz -9e" in read.text
    assert page.stat().st_size < 2_000_000
    assert "Not on this page" not in read.text


@pytest.mark.parametrize(
    "changes, last, floors, shown, hidden",
    [
        (
            {"log": {"every": 20}, "model": {"output_dropout": 0.2}, "optim": {"average": 0.9}},
            {"epoch": 0.25},
            {"ngram": {"order": 6, "bpc": 1.8}},
            [
                "mean of 20 steps",
                "dropout is on",
                "average of the weights",
                "25 % of its text, once",
                "5 symbols before",
            ],
            ["times, and", "repeats", "counts leave out"],
        ),
        (
            {"log": {"every": 1}, "model": {"ngrams": 4}},
            {"epoch": 7.0},
            {"ngram": {"order": 8, "bpc": 0.3, "repeated": 0.61}},
            ["7.0 times, and", "counts leave out", "61 % of the validation text repeats", "7 symbols before"],
            ["mean of", "dropout", "average of the weights", "of its text, once"],
        ),
    ],
)
def test_why_the_curves_differ_by_what_the_run_did(run, tmp_path, changes, last, floors, shown, hidden):
    found = read_run(run.run_dir, "cpu")
    found.config, found.model = changed(found.config, **changes), None
    found.history.records = [{**record, **last} for record in found.history.records]
    found.corpus.info = found.corpus.info | {"floors": floors}
    (tmp_path / "page.html").write_text(render(found, "", np.empty(0, np.uint8)), encoding="utf-8")
    text = Read(tmp_path / "page.html").text.replace(" ,", ",")
    assert [words for words in shown if words not in text] == []
    assert [words for words in hidden if words in text] == []


def test_the_pictures_of_the_readme_are_made_by_one_command_and_small(browser, run, tmp_path):
    taken = take_pictures(run.run_dir, None, tmp_path)
    kept = [ROOT / "scripts" / "pictures" / path.name for path in taken]
    assert [path.stem for path in taken] == [*PARTS] and len(kept) == 3
    for path in [*taken, *kept]:
        assert path.read_bytes().startswith(b"\x89PNG") and 5_000 < path.stat().st_size < 150_000


def test_a_run_without_weights_yet_has_curves_and_no_model(run, tmp_path):
    begun = tmp_path / "begun"
    begun.mkdir()
    lines = (Path(run.run_dir) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    (begun / "metrics.jsonl").write_text("\n".join([*lines[:5], lines[5][:20]]), encoding="utf-8")
    (begun / "config.yaml").write_bytes((Path(run.run_dir) / "config.yaml").read_bytes())
    (begun / "status.json").write_text('{"status": "running", "step": 5}')
    read = written(begun, None)
    assert "still training, step 5 of 30" in read.text
    assert "neither a model/" in read.text and "training" in read.ids and "cells" not in read.ids


def test_a_model_without_a_run_reads_generated_text(run, tmp_path):
    shutil.copytree(Path(run.run_dir) / "model", tmp_path / "alone")
    read = written(tmp_path / "alone", tmp_path / "alone.html")
    assert "a model without its run directory" in read.text and "generated itself" in read.text
    assert "cells" in read.ids and "training" not in read.ids and "corpus" not in read.ids
    given = written(tmp_path / "alone", tmp_path / "given.html", b"pass\n" * 9)
    assert len(given.data["ids"]) == 44 and "generated itself" not in given.text


def test_the_page_of_a_diverged_model_has_the_curves(run, tmp_path):
    shutil.copytree(run.run_dir, tmp_path / "run")
    model = CharLM.from_pretrained(tmp_path / "run" / "model")
    model.output.bias.data.fill_(float("nan"))
    model.save_pretrained(tmp_path / "run" / "model", model.vocab)
    read = written(tmp_path / "run", None)
    assert "not finite" in read.text and "training" in read.ids and "cells" not in read.ids


@pytest.mark.parametrize(
    "model, vocab",
    [
        ({"cell": "gru", "embedding_size": 0, "num_layers": 2}, {"unknown": "error"}),
        ({"cell": "rnn", "nonlinearity": "relu"}, {"bytes_only": True, "unknown": "bytes"}),
    ],
)
def test_other_models_and_vocabularies(model, vocab, run, tmp_path):
    config = changed(
        small(tmp_path / "run", data={"text": TEXT, "validation": 0.0}, model=model, vocab=vocab),
        train={"steps": 2},
    )
    train(config, quiet=True)
    read = written(config.run_dir, None)
    assert {"training", "surprise", "cells", "neighbours", "corpus"} <= set(read.ids)
    assert read.data["cells"]["total"] == 12 * model.get("num_layers", 1)
    displays = {read.data["symbols"][i][0] for i in read.data["ids"]}
    assert "␁" in displays and not any(c < " " for display in displays for c in display)
    if "bytes_only" in vocab:
        assert "C3" in displays and "é" in read.data["completed"].values()
    else:
        assert "one-hot" in read.text


# errors


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(CharlmError, match="holds neither a model/ nor a checkpoint"):
        write_page(str(tmp_path), None, None, "cpu")
    with pytest.raises(CharlmError, match="no such run directory"):
        write_page(str(tmp_path / "none"), None, None, "cpu")


@pytest.mark.parametrize(
    "text, message", [(b"a\xff", "byte 1 is not UTF-8"), (b"a", "--text: a text of 1 symbol")]
)
def test_text_that_cannot_be_read_is_refused(run, text, message, tmp_path):
    with pytest.raises(CharlmError, match=message):
        write_page(run.run_dir, tmp_path / "page.html", text, "cpu")


def test_a_page_that_cannot_be_written_raises(run, tmp_path):
    with pytest.raises(CharlmError, match="cannot be written"):
        write_page(run.run_dir, tmp_path / "none" / "page.html", b"pass\n" * 9, "cpu")


def test_without_matplotlib_the_error_names_the_package(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(CharlmError, match=re.escape("pip install 'charlm[report]'")):
        write_page(run.run_dir, None, None, "cpu")
