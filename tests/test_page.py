import base64
import io
import json
import re
from html.parser import HTMLParser

import pandas as pd
import pytest
from synthetic import write_backbones, write_pictures, write_scores, write_sweep

import analysis
from analysis import findings, page, report
from analysis.markup import VOID
from sd3_jax import cli, records

HOSTILE = """<script>alert("x")</script>&amp; '"><img src=x onerror=alert(1)> $\\frac$"""
FOLDER = "d04<script>'&\"><i>"  # what a file system allows of it
BUDGETS = (5e10, 1e11, 2e11, 4e11)


class Page(HTMLParser):
    """A page as a reader's program takes it; fails on tags that do not close in order."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.links, self.ids = [], [], [], []
        self.text: dict[str, str] = {}  # by the section that it stands in
        self.tables: dict[str, list[list[str]]] = {}
        self.section = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append((tag, given))
        self.links += [given[key] for key in ("src", "href") if key in given]
        self.ids += [given["id"]] if "id" in given else []
        self.section = given["id"] if tag == "section" else self.section
        if tag == "tr":
            self.tables.setdefault(self.section, []).append([])
        if tag in ("td", "th"):
            self.tables[self.section][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text[self.section] = self.text.get(self.section, "") + data
        if {"td", "th"} & set(self.open[-3:]):
            self.tables[self.section][-1][-1] += data


def render(path, **options) -> str:
    return page.render(findings.gather(path, **({"resamples": 40} | options)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A sweep that has everything, and its findings."""
    root = write_sweep(
        tmp_path_factory.mktemp("sweep") / "mine",
        noise=0.002,
        seeds=2,
        cooldown=True,
        **{"evaluation.budgets": BUDGETS},
    )
    write_pictures(write_scores(root, earlier=1))
    return root, findings.gather(root, resamples=40)


@pytest.fixture(scope="module")
def text(whole) -> str:
    return page.render(whole[1])


@pytest.fixture(scope="module")
def shown(text) -> Page:
    return Page(text)


def test_it_needs_nothing_else(shown):
    assert len(shown.links) > 10
    assert all(re.match("#|data:(image/|text/csv)", link) for link in shown.links)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in shown.tags}
    style = shown.text[""]
    assert "@import" not in style
    assert "url(" not in style
    for media in ("prefers-color-scheme: dark", "@media print", "max-width: 40rem"):
        assert media in style


def test_it_is_whole(shown):
    assert len(set(shown.ids)) == len(shown.ids) == len(page.SECTIONS)
    assert {link[1:] for link in shown.links if link[0] == "#"} == set(shown.ids)
    for title, place in zip(page.SECTIONS, shown.ids, strict=True):
        assert len(shown.text[place]) > len(title) + 20
    images = [given for tag, given in shown.tags if tag == "img"]
    assert len(images) >= 3  # the curves, the valleys, the contact sheet
    assert all(len(given["alt"]) > 40 for given in images)
    assert any("Figure 8" in text for text in shown.text.values())


def test_its_numbers_are_those_of_the_fit(whole, shown):
    root, found = whole
    law = analysis.fit(analysis.load(root), resamples=40)
    rows = {row[0]: row[1:] for row in shown.tables["the-law"][: 1 + len(law.constants)]}
    for name, value, ci95, without, _ in report.rows(law):
        assert rows[report.LETTERS.get(name, name)][:4:2] == [value, ci95.replace("e+", "e")]
        assert rows[report.LETTERS.get(name, name)][3] == without
    digits = {row[0]: row[1] for row in shown.tables["the-law"] if len(row) == 2}
    assert {name: float(digits[name]) for name in law.constants} == law.constants
    held = analysis.hold_out_largest(analysis.points_on_law(analysis.load(root)), resamples=40)
    assert report.held_out_sentence(held)[1:] in shown.text[""]
    numbers = findings.numbers(found)
    assert numbers["law"]["constants"] == {name: law.constants[name] for name in law.form.constants}
    assert numbers["hold_out"]["error"] == held.error
    assert numbers["missing"] == {}
    assert [one["question"] for one in numbers["checklist"]] == [item.question for item in found.checklist]
    json.dumps(numbers, allow_nan=False)


def test_who_has_the_page_alone_can_fit_again(whole, shown, tmp_path):
    (link,) = (link for link in shown.links if link.startswith("data:text/csv"))
    text = base64.b64decode(link.partition(",")[2]).decode()
    assert text.strip() in shown.text["raw-points"]
    (tmp_path / "points.csv").write_text(text)
    again = analysis.fit_points(analysis.read_points(tmp_path / "points.csv"), resamples=40)
    assert again.constants == whole[1].law.constants
    assert again.ci95 == whole[1].law.ci95


def test_what_comes_from_records_is_escaped(tmp_path):
    root = write_sweep(tmp_path / "<b>&", depths=(2, 3, 4, 5), seeds=1, noise=0.002, steps=400)
    for run_dir in records.find_runs(root):
        records.append(
            run_dir / "lives.jsonl", {"dtype": HOSTILE, "device": HOSTILE, "devices": 1, "revision": HOSTILE}
        )
    write_pictures(write_scores(root))
    for run_dir in records.find_runs(root):
        for metadata in run_dir.glob("samples/*/*/metadata.jsonl"):
            metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"prompt": HOSTILE}))
        rows, _ = records.read_rows(run_dir / "evals.jsonl")
        records.write_rows(run_dir / "evals.jsonl", [*rows, rows[-1] | {"name": HOSTILE.replace("/", "")}])
    (root / "d04-s0").rename(root / FOLDER)
    (root / "d05-s0" / "DONE").unlink()
    (root / "d05-s0").rename(root / "<img src=x>")  # not finished: in a note
    text = render(root)
    shown = Page(text)
    assert not {"script", "i", "img src=x"} & {tag for tag, _ in shown.tags}
    assert all(given["src"].startswith("data:") for tag, given in shown.tags if tag == "img")
    assert not any("onerror" in given for _, given in shown.tags)
    assert HOSTILE in shown.text["all-runs"]
    assert FOLDER in shown.text["all-runs"]
    assert HOSTILE.replace("/", "") in shown.text["scores-of-pictures"]
    assert "<img src=x>" in shown.text[""]
    assert "Scaling law of <b>&" in shown.text[""]


@pytest.mark.parametrize("lacking", [[], ["params", "data"]])
def test_names_in_a_table_are_escaped(tmp_path, lacking):
    rows = [(f"{HOSTILE}{n}", n, d, 6 * n * d, 1.7 + 400 * n**-0.34 + 400 * d**-0.28) for n in (1e7, 3e7, 1e8, 3e8)
            for d in (1e9, 3e9, 1e10)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["run", "params", "data", "flops", "loss"])
    table.drop(columns=lacking).to_csv(tmp_path / "<u>.csv", index=False)
    shown = Page(render(tmp_path / "<u>.csv"))
    assert not {"script", "u", "img"} & {
        tag for tag, given in shown.tags if not given.get("src", "").startswith("data:")
    }
    assert HOSTILE.replace('"', '""') in shown.text["raw-points"]  # as CSV has it
    assert lacking or next(row for row in shown.tables["the-law"] if row[0] == "E")[1] == "1.7"


def poor(kind: str, root):
    """Directories and tables that lack something, and the section that says so."""
    if kind == "one run":
        return write_sweep(root, depths=(3,), seeds=1)
    if kind == "two depths":
        return write_sweep(root, depths=(3, 4), seeds=2)
    if kind == "three depths":
        return write_sweep(root, depths=(3, 4, 5), seeds=1, noise=0.001)
    if kind == "short":
        return write_sweep(root, depths=(2, 3, 4), seeds=1, steps=60)
    if kind == "backbones":
        return write_backbones(root)
    table = "flops,loss\n" + "".join(f"{10 ** (k / 4)},{1 + 10 ** (-k / 40)}\n" for k in range(40, 52))
    if kind == "sizes alone":
        table = "params,data,loss\n" + "".join(
            f"{10 ** (k / 4)},{3 * 10 ** (k / 4)},{1 + 10 ** (-k / 40)}\n" for k in range(16, 28)
        )
    root.with_suffix(".csv").write_text(table)
    return root.with_suffix(".csv")


@pytest.mark.parametrize(
    "kind", ["one run", "two depths", "three depths", "short", "backbones", "no sizes", "sizes alone"]
)
def test_what_there_is_not_is_said(tmp_path, kind):
    shown = Page(render(poor(kind, tmp_path / "runs")))
    for title, place in zip(page.SECTIONS, shown.ids, strict=True):
        assert len(shown.text[place]) > len(title) + 20
        assert not re.search(r"\bnan\b|\bNone\b(?! of)|\.\.", shown.text[place].replace("0..7", "")), title


@pytest.fixture
def sd3(capsys):
    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            cli.main([str(one) for one in arguments])
        return stopped.value.code, *capsys.readouterr()

    return call


def test_the_command_writes_the_page_and_the_same_records_give_the_same_bytes(sd3, whole, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = sd3("report", whole[0], "--bootstrap", "40", "--json", "numbers.json")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "wrote figures/mine.html"
    assert re.search(r"^checklist: \d+ of \d+ questions answered", out, re.M)
    assert (tmp_path / "figures/mine.html").read_text() == text
    assert json.loads((tmp_path / "numbers.json").read_text()) == findings.numbers(whole[1])


def test_the_command_reads_a_table(sd3, whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    analysis.findings.raw(whole[1].points).rename(columns={"params": "N"}).to_csv("points.csv", index=False)
    options = ("--columns", "params=N", "--out", "sub/x.html", "--bootstrap", "40", "--json", "-")
    code, out, err = sd3("report", "points.csv", *options)
    assert code == 0
    assert json.loads(out)["law"]["constants"] == findings.numbers(whole[1])["law"]["constants"]
    assert err == "wrote sub/x.html\n"
    assert "data:text/csv" in (tmp_path / "sub/x.html").read_text()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["none"], "none: no such file, nor a directory of runs"),
        (["."], "holds no run"),
        ([".", "--out", "page.pdf"], "page.pdf is not the name of a page; it must end in .html"),
        ([".", "--where", "guidance"], "guidance"),
        (["x.csv", "--where", "guidance=5"], "--where: is for runs"),
        (["none", "--bootstrap", "3"], "3 resamples give no interval"),
        (["none", "--columns", "x=y"], "--columns"),
    ],
)
def test_bad_arguments_are_one_line(sd3, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, out, err = sd3("report", *arguments)
    assert (code, out) == (2, "")
    assert re.fullmatch(r"sd3-jax: error: [^\n]+\n", err)
    assert words in err
    assert list(tmp_path.iterdir()) == []


def test_figures_are_whole(shown):
    for tag, given in shown.tags:
        if tag == "img":
            kind, _, content = given["src"].partition(";base64,")
            image = base64.b64decode(content)
            assert image.startswith({"data:image/png": b"\x89PNG", "data:image/svg+xml": b"<?xml"}[kind])
            assert io.BytesIO(image).getbuffer().nbytes > 5000
