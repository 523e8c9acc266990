"""The server of the vote: what it serves, to whom, and what becomes of a vote."""

import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from booth import CAPTIONS, SYSTEMS, Site, answer_to, ballot_of, served, write_pictures

import sd3_jax
from sd3_jax.voting import server, votes
from sd3_jax.voting.ballot import make_ballot


@pytest.fixture
def pictures(tmp_path) -> Path:
    return write_pictures(tmp_path)


@pytest.fixture
def site(pictures) -> Iterator[Site]:
    with served(ballot_of(pictures), pictures / "votes.jsonl") as made:
        yield made


def test_no_file_is_served_but_the_page_and_the_pictures(site, pictures) -> None:
    token, picture = next(iter(site.ballot.pictures.items()))
    whole = site.get(f"/picture/{token}")
    assert (whole.status, whole.body) == (200, picture.path.read_bytes())
    assert whole.headers["X-Content-Type-Options"] == "nosniff"
    for path in (
        "/secret.txt", "/../secret.txt", "/picture/../secret.txt", "/picture/%2e%2e/secret.txt", "/picture/secret.txt",
        f"/picture/{pictures}/secret.txt", "/picture//etc/passwd", "/picture/..%2f..%2fetc%2fpasswd", "/picture/",
        "/picture/00000.png", "/picture/alpha/00000.png", f"/picture/{token}/", f"/picture/{token}%00", "/votes.jsonl",
        "/vote.html", "/index.html", "/%00", "/picture/" + "a" * 5000, f"/x/../picture/{token}",
        "file:///etc/passwd", f"http://127.0.0.1:{site.port}/../secret.txt",
    ):  # fmt: skip
        reply = site.get(path)
        assert reply.status == 404, path
        assert b"secret" not in reply.body
    assert site.get("/x" * 40_000).status == 414
    picture.path.write_bytes((pictures / "secret.txt").read_bytes())
    gone = site.get(f"/picture/{token}")  # not what was looked at
    assert gone.status == 410
    assert b"secret" not in gone.body
    assert str(pictures).encode() not in gone.body


def test_nothing_before_the_results_names_a_system(site, pictures) -> None:
    paths = ["/", "/ballot?rater=ann", *(f"/picture/{token}" for token in site.ballot.pictures), "/picture/x", "/x"]
    site.post(answer_to(site.ballot, next(iter(site.ballot.comparisons)), "left"))
    for path in paths:
        reply = site.get(path)
        told = json.dumps(reply.headers) + ("" if reply.headers["Content-Type"][:5] == "image" else reply.body.decode())
        assert not any(name in told for name in ("alpha", "beta", str(pictures), "00000")), path
    shown = site.get("/results").body.decode()
    assert "alpha" in shown


def test_the_page_may_run_its_own_script_alone(site) -> None:
    policy = site.get("/").headers["Content-Security-Policy"]
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert re.fullmatch(r"'sha256-[\w+/=]+'", rules["script-src"])
    assert "unsafe" not in policy
    assert "script" not in site.get("/results").headers["Content-Security-Policy"]
    for path in ("/ballot?rater=ann", "/nothing"):
        assert site.get(path).headers["Content-Security-Policy"].startswith("default-src 'none'")


@pytest.mark.parametrize(
    "host, status",
    [
        ("127.0.0.1:{port}", 200),
        ("localhost:{port}", 200),
        ("LOCALHOST:{port}", 200),
        ("127.0.0.9:{port}", 200),
        ("[::1]:{port}", 200),
        ("evil.example:{port}", 421),  # a name that was pointed at this address
        ("127.0.0.1.evil.example:{port}", 421),
        ("localhost.evil.example:{port}", 421),
        ("192.0.2.7:{port}", 421),
        ("127.0.0.1", 200),
        ("localhost:1", 200),  # through a tunnel
        ("127.0.0.1:x", 421),
        ("a@127.0.0.1:{port}", 421),
        ("127.0.0.1:{port}/x", 421),
        ("[", 421),
        ("", 421),
        (None, 421),
    ],
)
def test_a_request_must_mean_this_host(site, host, status) -> None:
    host = host and host.format(port=site.port)
    assert site.get("/", Host=host).status == status
    [item, *_] = site.ballot.comparisons
    posted = site.post(answer_to(site.ballot, item, "left"), Host=host, Origin=f"http://{host}")
    assert posted.status == status
    assert len(site.rows()) == (status == 200)


def test_a_server_for_a_network_answers_to_numbers_but_to_no_foreign_name(pictures) -> None:
    made = server.make_server(ballot_of(pictures), pictures / "votes.jsonl", str, "0.0.0.0")
    port = made.server_address[1]
    try:
        for host, is_ours in (
            (f"192.0.2.7:{port}", True),
            (f"{socket.gethostname()}:{port}", True),
            (f"localhost:{port}", True),
            (f"evil.example:{port}", False),
        ):
            assert server._is_this_host(host, made) == is_ours, host
    finally:
        made.server_close()


BAD_POSTS: dict[str, tuple[dict[str, Any], int]] = {
    "from another origin": ({"Origin": "http://evil.example"}, 403),
    "from another port": ({"Origin": "http://127.0.0.1:1"}, 403),
    "from a file or a sandbox": ({"Origin": "null"}, 403),
    "from nowhere": ({"Origin": None}, 403),
    "as a form": ({"Content_Type": "text/plain"}, 415),
    "of a form's type": ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
    "of no type": ({"Content_Type": None}, 415),
    "of a huge length": ({"Content_Length": "99999999999999"}, 413),
    "too long": ({"Content_Length": "8193"}, 413),
    "of no length": ({"Content_Length": None}, 411),
    "of a negative length": ({"Content_Length": "-1"}, 411),
}


@pytest.mark.parametrize("what", BAD_POSTS)
def test_a_foreign_page_cannot_vote(site, what) -> None:
    headers, status = BAD_POSTS[what]
    [item, *_] = site.ballot.comparisons
    reply = site.post(answer_to(site.ballot, item, "left"), **headers)
    assert reply.status == status
    assert site.rows() == []
    assert site.ask("POST", "/other", b"{}", Origin=f"http://127.0.0.1:{site.port}").status == 404
    assert site.ask("PUT", "/vote", b"{}").status == 501


def test_what_is_no_vote_is_refused(site) -> None:
    [item, *_] = site.ballot.comparisons
    good = answer_to(site.ballot, item, "left")
    bad: list[Any] = [b"", b"{", b"[" * 8000, b"[]", b"7", b"null", b'{"id": NaN}', b"\xff", {}, *(
        good | change for change in (
            {"winner": "a"}, {"winner": ""}, {"winner": 1}, {"winner": ["left"]}, {"item": "x"}, {"item": None},
            {"axis": "beauty"}, {"axis": "typography"}, {"left": "x"}, {"left": 0}, {"rater": ""}, {"rater": "  "},
            {"rater": "a" * 65}, {"rater": "a\u0000"}, {"rater": "\u202e"}, {"rater": 7}, {"id": ""}, {"id": "x" * 65},
            {"id": 7},
        )
    )]  # fmt: skip
    item_without_text = next(i for i in site.ballot.comparisons if i not in site.ballot.questions["typography"])
    bad.append(answer_to(site.ballot, item_without_text, "left", axis="typography"))
    bad = [one for one in bad if one != good | {"axis": "typography"}]
    for one in bad:
        reply = site.post(one)
        assert reply.status == 400, one
        assert json.loads(reply.body)["error"]
    assert site.get("/ballot").status == 400
    assert site.get("/ballot?rater=%00").status == 400
    assert site.rows() == []
    assert site.get("/results").status == 404
    for seconds in (None, -1, math.inf, "x", True):
        assert site.post(good | {"id": f"s{seconds}", "seconds": seconds}).status == 200
    assert site.post(good | {"id": "plain", "rater": "<b>Ann  O'Hara</b>\n"}).status == 200
    assert site.rows()[-1]["rater"] == "<b>Ann O'Hara</b>"


def test_the_winner_is_who_stood_there(site) -> None:
    for number, (item, one) in enumerate(site.ballot.comparisons.items()):
        for left in ("a", "b"):
            for winner in ("left", "right", "tie", "skip"):
                answer = answer_to(site.ballot, item, winner, rater=f"{left}{winner}")
                answer["left"] = getattr(one, left).token
                assert site.post(answer).status == 200
                row = site.rows()[-1]
                right = "b" if left == "a" else "a"
                assert row["winner"] == {"left": left, "right": right}.get(winner, winner)
                assert (row["model_a"], row["model_b"]) == ("alpha", "beta")
                assert (row["image_a"], row["image_b"]) == (f"{number:05d}.png", f"{number:05d}.jpg")
                assert (row["prompt"], row["prompt_id"]) == (CAPTIONS[number], number)
                assert (row["left"], row["seconds"]) == (left, 1.25)
                back = json.loads(site.get(f"/ballot?rater={left}{winner}").body)["answers"]
                mine = next(one for one in back if one["item"] == item)
                assert (mine["left"], mine["winner"]) == (answer["left"], winner)


def test_a_vote_that_is_sent_again_is_one_vote(site, pictures) -> None:
    [item, other, _] = site.ballot.comparisons
    first = answer_to(site.ballot, item, "left", id="one")
    assert [site.post(first).status for _ in range(3)] == [200] * 3
    assert len(site.votes.read_text().splitlines()) == 1
    site.post(answer_to(site.ballot, item, "right", id="two"))
    site.post(first)  # comes late: it was answered otherwise since
    assert [row["winner"] for row in votes.standing(site.rows())] == ["b"]
    site.post(answer_to(site.ballot, other, "tie", id="three"))
    site.post(answer_to(site.ballot, item, "undone", id="four"))
    assert [row["winner"] for row in votes.standing(site.rows())] == ["tie"]
    with served(site.ballot, site.votes) as again:  # after a restart too
        again.post(first)
        assert len(site.votes.read_text().splitlines()) == 4
        assert [row["item"] for row in json.loads(again.get("/ballot?rater=ann").body)["answers"]] == [other]


def test_raters_at_once_through_two_servers_lose_nothing(pictures) -> None:
    ballot, path = ballot_of(pictures, *SYSTEMS), pictures / "votes.jsonl"
    raters = [f"rater {number}" for number in range(6)]
    with served(ballot, path) as one, served(ballot, path) as other, ThreadPoolExecutor(12) as pool:
        answers = [
            answer_to(ballot, item, ("left", "right", "tie")[number % 3], rater, axis)
            for number, rater in enumerate(raters)
            for axis in ("following", "quality")
            for item in ballot.comparisons
        ]
        sent = list(pool.map(lambda pair: (one, other)[pair[0] % 2].post(pair[1]).status, enumerate(answers * 2)))
    assert set(sent) == {200}
    rows, notes = votes.read(path)
    assert notes == []
    assert len(rows) == len(votes.standing(rows)) == len(answers) == 6 * 2 * 9
    assert {row["id"]: row["winner"] for row in rows} == {
        answer["id"]: {"left": "a", "right": "b"}.get(answer["winner"], answer["winner"]) for answer in answers
    }


def test_half_a_line_of_a_crash_costs_that_line_alone(site) -> None:
    items = list(site.ballot.comparisons)
    site.post(answer_to(site.ballot, items[0], "left"))
    whole = site.votes.read_bytes()
    site.votes.write_bytes(whole + whole[: len(whole) // 2])
    site.post(answer_to(site.ballot, items[1], "left"))
    rows, notes = votes.read(site.votes)
    assert [row["item"] for row in rows] == items[:2]
    assert notes == [f"{site.votes}:2: is not a vote; left out"]


def test_a_full_disk_is_said_and_the_vote_can_be_sent_again(site, monkeypatch) -> None:
    [item, *_] = site.ballot.comparisons
    write = os.write
    monkeypatch.setattr(votes.os, "write", lambda file, line: write(file, line[:40]))
    assert site.post(answer_to(site.ballot, item, "left")).status == 507
    monkeypatch.undo()
    assert site.post(answer_to(site.ballot, item, "left")).status == 200
    assert [row["winner"] for row in site.rows()] == ["a"]


def test_the_command_serves_until_it_is_stopped_and_the_votes_are_read(pictures) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(sd3_jax.__file__).parent.parent), "COLUMNS": "200"}
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # which background jobs ignore
    command = [sys.executable, "-c", f"{heed}; from sd3_jax.cli import main; main()"]
    arguments = ["vote", "first=alpha", "beta", "--prompts", "prompts.txt", "--port", "0"]
    process = subprocess.Popen(
        [*command, *arguments],
        cwd=pictures,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        said = process.stdout.readline()
        port = int(re.search(r"7 questions about 3 pairs of 2 systems: http://127.0.0.1:(\d+)/$", said)[1])
        ballot = make_ballot({"first": pictures / "alpha", "beta": pictures / "beta"}, pictures / "prompts.txt")
        site = Site(ballot, pictures / "votes.jsonl", port)
        for item in ballot.comparisons:
            assert site.post(answer_to(ballot, item, "left")).status == 200
        assert b"Results of the vote" in site.get("/results").body
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0
        assert "3 answers in votes.jsonl" in out
        assert err == ""
    finally:
        process.kill()
        process.wait()
