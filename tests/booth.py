"""Pictures to vote on, a server of them, and requests to it."""

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from analysis import voting as drawn
from sd3_jax.voting import results, server, votes
from sd3_jax.voting.ballot import Ballot, make_ballot

HOSTILE = """</script><script>window.hurt = 1</script><img src=x onerror="window.hurt = 2">&lt; "OPEN" <b>'"""
CAPTIONS = ["a photo of a dog's ball", HOSTILE, "two cats on the dogs' sofa"]
SYSTEMS = {"alpha": (200, 40, 40), "beta": (40, 160, 60), "gamma": (50, 60, 220)}


def write_flat(folder: Path, colour: tuple[int, int, int], captions: list[str], suffix: str = "png") -> None:
    folder.mkdir(parents=True)
    for number, _ in enumerate(captions):
        Image.new("RGB", (32, 32), (*colour[:2], colour[2] + number)).save(folder / f"{number:05d}.{suffix}")


def write_geneval(folder: Path, colour: tuple[int, int, int], captions: list[str]) -> None:
    for number, caption in enumerate(captions):
        inner = folder / f"{number:05d}"
        (inner / "samples").mkdir(parents=True)
        (inner / "metadata.jsonl").write_text(json.dumps({"prompt": caption}))
        Image.new("RGB", (32, 32), (*colour[:2], colour[2] + number)).save(inner / "samples" / "0000.png")


def write_pictures(tmp_path: Path) -> Path:
    """Three systems, one flat, one in JPEG, one in GenEval's layout and another order; and a secret beside them."""
    write_flat(tmp_path / "alpha", SYSTEMS["alpha"], CAPTIONS)
    write_flat(tmp_path / "beta", SYSTEMS["beta"], CAPTIONS, "jpg")
    write_geneval(tmp_path / "gamma", SYSTEMS["gamma"], [*reversed(CAPTIONS), "another"])
    (tmp_path / "prompts.txt").write_text("\n".join(CAPTIONS) + "\n")
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "alpha" / "secret.txt").write_text("secret")
    return tmp_path


def ballot_of(folder: Path, *names: str, **options: Any) -> Ballot:
    return make_ballot({name: folder / name for name in names or ("alpha", "beta")}, folder / "prompts.txt", **options)


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


class Site(NamedTuple):
    ballot: Ballot
    votes: Path
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str | None) -> Reply:
        given = {"Host": f"127.0.0.1:{self.port}"} | {key.replace("_", "-"): value for key, value in headers.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for key, value in given.items():
                if value is not None:
                    connection.putheader(key, value)
            if body is not None and "Content-Length" not in given:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            reply = connection.getresponse()
            return Reply(reply.status, dict(reply.headers), reply.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str | None) -> Reply:
        return self.ask("GET", path, **headers)

    def post(self, answer: Any, **headers: str | None) -> Reply:
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        own = {"Content_Type": "application/json", "Origin": f"http://127.0.0.1:{self.port}"}
        return self.ask("POST", "/vote", body, **(own | headers))

    def rows(self) -> list[dict[str, Any]]:
        return votes.read(self.votes)[0]


@contextmanager
def served(ballot: Ballot, path: Path, port: int = 0) -> Iterator[Site]:
    made = server.make_server(ballot, path, lambda: drawn.votes_page(results.tally(votes.read(path)[0])), port=port)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield Site(ballot, path, made.server_address[1])
    finally:
        made.shutdown()
        made.server_close()
        thread.join()


def answer_to(ballot: Ballot, item: str, winner: str, rater: str = "ann", axis: str = "quality", id: str = "") -> Any:
    left = ballot.comparisons[item].a.token
    return {
        "id": id or f"{rater}-{axis}-{item}"[:64], "rater": rater, "axis": axis, "item": item, "left": left,
        "winner": winner, "seconds": 1.25,
    }  # fmt: skip
