"""The page of the vote, in a browser where there is one, and its script by itself."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from booth import CAPTIONS, SYSTEMS, Site, ballot_of, served, write_pictures

from sd3_jax.voting import page, votes


@pytest.fixture
def pictures(tmp_path) -> Path:
    return write_pictures(tmp_path)


@pytest.fixture
def site(pictures) -> Iterator[Site]:
    with served(ballot_of(pictures), pictures / "votes.jsonl") as made:
        yield made


NODE = shutil.which("node")


def _hash(text: str) -> int:
    """The page's hash, in Python: FNV-1a, and the end of MurmurHash3."""
    value = 0x811C9DC5
    for byte in text.encode():
        value = (value ^ byte) * 0x01000193 % 2**32
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        value = (value ^ (value >> shift)) * factor % 2**32
    return value ^ (value >> 16)


def _plan(shown: dict[str, Any], rater: str) -> list[tuple[str, str, str, str]]:
    """What a rater is asked, in Python: (axis, item, left, right)."""
    found = []
    first = _hash(f"first\n{shown['seed']}\n{rater}") % len(shown["questions"])
    for question in shown["questions"][first:] + shown["questions"][:first]:
        key = [f"{shown['seed']}\n{rater}\n{question['axis']}\n{item}" for item in question["items"]]
        order = sorted(zip(key, question["items"], strict=True), key=lambda one: (_hash("order\n" + one[0]), one[1]))
        for own, item in order:
            first, second = shown["items"][item]["pictures"]
            pair = (first, second) if _hash("side\n" + own) & 1 else (second, first)
            found.append((question["axis"], item, *pair))
    return found


def test_sides_and_order_are_a_fair_function_of_rater_question_pair_and_seed() -> None:
    items = {f"{number:024x}": {"prompt": "", "pictures": ["p", "q"]} for number in range(500)}
    questions = [{"axis": axis, "text": "", "items": sorted(items)} for axis in ("following", "quality")]
    shown = {"seed": 0, "items": items, "questions": questions}
    plans = {rater: _plan(shown, rater) for rater in ("ann", "bob")} | {"seed 1": _plan(shown | {"seed": 1}, "ann")}
    by_axis = {(who, axis): [row for row in own if row[0] == axis] for who, own in plans.items() for axis in
               ("following", "quality")}  # fmt: skip
    spread = np.sqrt(500) / 2
    sides = {key: {row[1]: row[2] == "p" for row in rows} for key, rows in by_axis.items()}
    for rows in by_axis.values():
        place = [int(row[1], 16) for row in rows]
        assert sorted(place) == list(range(500))
        assert abs(np.corrcoef(place, np.arange(500))[0, 1]) < 4 / np.sqrt(500)
    for one in sides.values():
        assert abs(sum(one.values()) - 250) < 4 * spread
    for one in list(sides.values())[1:]:  # independent of each other
        same = sum(one[item] == sides["ann", "following"][item] for item in items)
        assert abs(same - 250) < 4 * spread


@pytest.mark.skipif(NODE is None, reason="node is not installed: the page's script is not run by itself")
def test_the_script_of_the_page_shuffles_as_its_twin_in_python_does(pictures, tmp_path) -> None:
    [script] = re.findall(r"<script>(.*?)</script>", page.source(), re.DOTALL)
    (tmp_path / "page.js").write_text(script)
    shown = ballot_of(pictures, *SYSTEMS, seed=3).shown()
    code = "const {plan, hash} = require('./page.js'); const [b, raters, texts] = JSON.parse(process.argv[1]);"
    code += "console.log(JSON.stringify([raters.map(r => plan(b, r).map(x => [x.axis, x.item, x.left, x.right])), "
    code += "texts.map(hash)]))"
    raters, texts = ["ann", "Ångström 🙂", "<b>"], ["", "a", "é🙂", "x" * 1000]
    run = subprocess.run(
        [NODE, "-e", code, json.dumps([shown, raters, texts])], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    plans, hashes = json.loads(run.stdout)
    assert hashes == [_hash(text) for text in texts]
    assert [[tuple(row) for row in one] for one in plans] == [_plan(shown, rater) for rater in raters]


# --- in a browser ---------------------------------------------------------------------------------------------------

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
NOON, LATER = (datetime(2030, 1, 1, hour, tzinfo=UTC) for hour in (12, 13))
READY = 'body[data-ready]:not([data-ready=""])'


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser without a window: one that is installed, or playwright's own."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
    found = next(filter(None, map(shutil.which, NAMES)), None)
    with api.sync_playwright() as player:
        if found is None and not Path(player.chromium.executable_path).exists():
            pytest.skip("no Chromium is installed (apt-get install chromium): the page is not tried in a browser")
        launched = player.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield launched
        launched.close()


class Rater:
    """A person at a page of their own, who knows from the tests what is behind a token."""

    def __init__(self, browser: Any, url: str, name: str):
        self.name, self.said = name, []
        self.context = browser.new_context(accept_downloads=True)
        self.page = self.context.new_page()
        self.page.on("dialog", self.hear)
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.clock.install(time=NOON)
        self.page.goto(url)

    def hear(self, dialog: Any) -> None:
        if dialog.type != "beforeunload":  # votes are on their way: they are kept, and sent again
            self.said.append(dialog.message)
        dialog.accept()

    def enter(self) -> None:
        self.page.fill("#rater", self.name)
        self.page.keyboard.press("Enter")
        self.wait()

    def wait(self, after: str = "") -> str:
        """The pair that is shown once it can be answered, and is not the one ``after`` which it comes; or "done"."""
        self.page.wait_for_selector(f'{READY}:not([data-ready="{after}"])')
        self.page.clock.fast_forward(300)  # a second key so soon would be taken for part of the first
        return self.page.get_attribute("body", "data-ready")

    def sent(self) -> None:
        """Once the server has every vote: the page goes on before it has."""
        self.page.wait_for_selector("#unsaved:empty", state="attached")

    def shown(self) -> tuple[str, str]:
        """The tokens of the pictures, left and right."""
        left, right = (self.page.get_attribute(f"#{side} img", "src") for side in ("left", "right"))
        return left.removeprefix("picture/"), right.removeprefix("picture/")

    def press(self, key: str) -> str:
        before = self.page.get_attribute("body", "data-ready")
        self.page.keyboard.press(key)
        return self.wait(before)

    def prefer(self, ballot: Any, *order: str) -> str:
        """Answer with a key: for the system that comes first in ``order``."""
        left, right = (ballot.pictures[token].system for token in self.shown())
        return self.press("ArrowLeft" if order.index(left) < order.index(right) else "ArrowRight")

    def text(self, selector: str) -> str:
        return self.page.inner_text(selector)


@pytest.fixture
def rater(browser) -> Iterator[Any]:
    """Makes raters, each with a browser's memory of their own."""
    made: list[Rater] = []

    def make(url: str, name: str) -> Rater:
        made.append(Rater(browser, url, name))
        return made[-1]

    yield make
    for one in made:
        one.context.close()


def test_two_raters_at_once_one_of_whom_reloads(rater, site) -> None:
    ann, bob = (rater(site.url, name) for name in ("ann", "bob"))
    for one in (ann, bob):
        assert one.page.is_visible("#start")
        one.enter()
        assert not any(name in one.page.content() for name in ("alpha", "beta"))
    questions = set()
    asked = 0
    places = {"ann": "", "bob": ""}
    while set(places.values()) != {"done"}:
        for one, order in ((ann, ("alpha", "beta")), (bob, ("beta", "alpha"))):
            questions.add(one.text("#question"))
            places[one.name] = one.prefer(site.ballot, *order)
        asked += 1
        assert f"{asked} of 7 answered" in ann.text("#count")
        if asked == 3:
            before = ann.shown(), ann.text("#question"), ann.text("#caption")
            ann.page.reload()
            places["ann"] = ann.wait()
            assert (ann.shown(), ann.text("#question"), ann.text("#caption")) == before
            assert "3 of 7 answered" in ann.text("#count")
    assert len(questions) == 3
    assert "7 votes are counted, 0 pairs were skipped" in ann.text("#summary")
    ann.sent()
    bob.sent()
    rows = site.rows()
    assert len(rows) == 14
    assert {(row["rater"], row["winner"]) for row in rows} == {("ann", "a"), ("bob", "b")}
    assert {row["left"] for row in rows} == {"a", "b"}
    assert not ann.said
    assert not bob.said
    ann.page.click("text=The results so far")
    ann.page.wait_for_url("**/results")
    assert ann.page.title() == "Results of the vote"
    assert "14 votes by 2 raters" in ann.text(".lead")


def test_a_hostile_caption_is_text(rater, site) -> None:
    ann = rater(site.url, "<img src=x onerror='window.hurt = 3'>")
    ann.enter()
    seen = set()
    place = ""
    while place != "done":
        seen.add(ann.text("#caption"))
        assert ann.page.locator("#caption *").count() == 0
        assert ann.page.locator("script").count() == 2
        place = ann.press("ArrowDown")
    assert seen == set(CAPTIONS)
    assert not ann.page.evaluate("() => 'hurt' in window")
    assert not ann.said
    ann.sent()
    assert {row["rater"] for row in site.rows()} == {ann.name}
    assert {row["winner"] for row in site.rows()} == {"tie"}


def test_a_double_click_is_one_vote_and_an_undone_one_is_asked_again(rater, site) -> None:
    ann = rater(site.url, "ann")
    ann.enter()
    ann.page.clock.pause_at(LATER)  # or a busy machine takes longer over the clicks than the page takes them for one
    first = ann.page.get_attribute("body", "data-ready")
    assert ann.page.is_disabled("#vote .undo")
    ann.page.dblclick("#left")
    ann.page.keyboard.press("ArrowLeft")
    second = ann.wait(first)
    assert second not in ("done", first)
    assert "1 of 7 answered" in ann.text("#count")
    assert ann.press("u") == first  # asked again
    assert "0 of 7 answered" in ann.text("#count")
    ann.page.click("#right")
    assert ann.wait(first) == second
    ann.page.reload()
    assert ann.wait() == second
    assert ann.press("U") == first  # undone after a reload too
    assert ann.press("s") == second
    ann.page.keyboard.down("ArrowDown")
    for _ in range(5):
        ann.page.keyboard.down("ArrowDown")  # held: repeats
    ann.wait(second)
    assert "2 of 7 answered" in ann.text("#count")
    ann.sent()
    answers = votes.standing(site.rows())
    assert [row["winner"] for row in answers] == ["skip", "tie"]
    given = [row["winner"] for row in site.rows()]
    assert given[1::2] == ["undone", "undone", "tie"]
    assert {given[0], given[2]} == {"a", "b"}
    assert not ann.said


def test_votes_wait_for_a_server_that_is_away_and_are_counted_once(rater, site) -> None:
    ann = rater(site.url, "ann")
    ann.enter()
    second = ann.press("ArrowLeft")
    ann.sent()
    ann.context.set_offline(True)
    ann.page.keyboard.press("ArrowRight")
    ann.page.wait_for_selector("#unsaved:has-text('1 not saved yet')")
    assert len(site.rows()) == 1
    ann.context.set_offline(False)
    ann.page.clock.fast_forward(2100)
    ann.sent()
    assert len(site.rows()) == 2
    third = ann.wait(second)
    assert not ann.page.locator(".lost:visible").count()  # what was lost meanwhile is there again
    ann.page.reload()
    assert ann.wait() == third
    assert "2 of 7 answered" in ann.text("#count")


def test_pictures_that_come_to_be_lost_after_the_vote_was_saved_are_asked_for_again(rater, site) -> None:
    ann, asked, held, back = rater(site.url, "ann"), set(), [], False

    def hold(route: Any) -> None:
        asked.add(route.request.url)
        if len(asked) > 2 and not back:  # of the pair after the first
            held.append(route)
        else:
            route.continue_()

    ann.page.route("**/picture/*", hold)
    ann.enter()
    before = ann.page.get_attribute("body", "data-ready")
    ann.page.keyboard.press("ArrowLeft")
    ann.sent()
    assert held
    back = True
    for route in held:
        route.abort()
    ann.wait(before)
    assert not ann.page.locator(".lost:visible").count()


def test_a_picture_that_is_lost_can_only_be_skipped(rater, site, pictures) -> None:
    for picture in (pictures / "beta").iterdir():
        picture.unlink()
    ann = rater(site.url, "ann")
    ann.enter()
    assert ann.page.locator(".lost:visible").count() == 1
    assert ann.page.is_disabled("#left")
    assert ann.page.is_disabled("#tie")
    before = ann.page.get_attribute("body", "data-ready")
    ann.page.keyboard.press("ArrowLeft")
    ann.page.wait_for_timeout(100)
    assert ann.page.get_attribute("body", "data-ready") == before
    ann.press("s")
    ann.sent()
    assert [row["winner"] for row in site.rows()] == ["skip"]


def test_an_exported_folder_works_from_a_disk(rater, pictures) -> None:
    ballot, out = ballot_of(pictures), pictures / "out"
    page.export(ballot, out)
    moved = pictures / "else where"
    out.rename(moved)
    for system in SYSTEMS:
        shutil.rmtree(pictures / system)  # it needs nothing of them
    url = (moved / "index.html").as_uri()
    ann = rater(url, "Ann O'Hara")
    ann.enter()
    for _ in range(3):
        place = ann.prefer(ballot, "alpha", "beta")
    assert ann.page.evaluate("() => document.querySelector('#left img').naturalWidth") == 32
    ann.page.reload()
    assert ann.wait() == place
    ann.press("u")
    while place != "done":
        place = ann.prefer(ballot, "alpha", "beta")
    assert ann.page.is_visible("#send")
    assert not ann.page.is_visible("#look")
    with ann.page.expect_download() as download:
        ann.page.click("#save")
    assert download.value.suggested_filename == "votes-Ann-O-Hara.jsonl"
    download.value.save_as(pictures / "saved.jsonl")
    assert votes.import_answers([pictures / "saved.jsonl"], ballot, pictures / "votes.jsonl") == 9
    rows = votes.standing(votes.read(pictures / "votes.jsonl")[0])
    assert {(row["rater"], row["winner"]) for row in rows} == {("Ann O'Hara", "a")}
    assert len(rows) == 7
    assert not ann.page.evaluate("() => 'hurt' in window")
    assert not ann.said
