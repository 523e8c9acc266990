"""Votes: one JSON object a line, appended whole, read with care; the last word of a rater on a pair counts, once.

A row: ``id`` (of the answer: sent again, it is the same answer), ``time``, ``rater``, ``axis``, ``winner`` (a, b, tie;
skip and undone count for nothing), ``prompt_id``, ``prompt``, ``model_a``, ``model_b``, ``image_a``, ``image_b``,
``left`` (a or b: which stood there), ``item`` (the pair), ``seconds``, and ``partial`` where pictures were lacking.
Rows of anyone's with ``rater``, ``axis``, ``winner``, ``prompt_id``, ``model_a`` and ``model_b`` can be read.
"""

import json
import math
import os
import threading
import time
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from sd3_jax.errors import UserError
from sd3_jax.voting.ballot import Ballot

WINNERS = ("a", "b", "tie", "skip", "undone")
COUNTED = ("a", "b", "tie")
NAME_LENGTH, ID_LENGTH = 64, 64
_ANSWERS = ("left", "right", "tie", "skip", "undone")
_FIELDS = ("id", "rater", "axis", "item", "left", "winner")
_appending = threading.Lock()


def row_of(answer: Any, ballot: Ballot, now: float | None = None) -> dict[str, Any]:
    """The row of an answer as the page sends it, which names pictures by their tokens and the winner by its side.

    Raises UserError for anything else than an answer to this ballot.
    """
    if not isinstance(answer, Mapping) or not all(isinstance(answer.get(key), str) for key in _FIELDS):
        raise UserError(f"a vote is an object with the texts {', '.join(_FIELDS)}")
    comparison = ballot.comparisons.get(answer["item"])
    if comparison is None or answer["item"] not in ballot.questions.get(answer["axis"], ()):
        raise UserError("this pair is not on the ballot: its folders, prompts or questions are other ones")
    sides = {comparison.a.token: "a", comparison.b.token: "b"}
    if answer["left"] not in sides or answer["winner"] not in _ANSWERS:
        raise UserError(f"a vote says which picture stood left, and one of {', '.join(_ANSWERS)}")
    left = sides[answer["left"]]
    named = {"left": left, "right": "b" if left == "a" else "a"}
    seconds = answer.get("seconds")
    took = round(float(seconds), 2) if isinstance(seconds, int | float) and 0 <= seconds < math.inf else None
    if not 0 < len(answer["id"]) <= ID_LENGTH:
        raise UserError(f"the id of a vote has 1 to {ID_LENGTH} characters")
    row = {
        "id": answer["id"],
        "time": round(time.time() if now is None else now),
        "rater": rater_name(answer["rater"]),
        "axis": answer["axis"],
        "winner": named.get(answer["winner"], answer["winner"]),
        "prompt_id": comparison.prompt_id,
        "prompt": comparison.prompt,
        "model_a": comparison.a.system,
        "model_b": comparison.b.system,
        "image_a": comparison.a.name,
        "image_b": comparison.b.name,
        "left": left,
        "item": comparison.item,
        "seconds": took,
    }
    return row | ({"partial": ballot.partial} if ballot.partial else {})


def rater_name(text: str) -> str:
    """A rater's name as plain text: one line of printable characters. Raises UserError for another."""
    name = " ".join(text.split())
    if not 0 < len(name) <= NAME_LENGTH or not name.isprintable():
        raise UserError(f"a rater's name has 1 to {NAME_LENGTH} printable characters")
    return name


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Add a vote: one write at the end of the file, which other processes may be adding to, and on the disk at once.

    Raises OSError if not all of it could be written; what was is then a line of its own, which readers skip.
    """
    line = json.dumps(dict(row), allow_nan=False).encode() + b"\n"
    with _appending:
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            size = os.fstat(file).st_size
            if size and os.pread(file, 1, size - 1) != b"\n":  # a crash has left half a line
                line = b"\n" + line
            if os.write(file, line) < len(line):
                raise OSError(f"{path}: the vote could not be written whole: is the disk full?")
            os.fsync(file)
        finally:
            os.close(file)


def read(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The votes of a file in its order, each answer once, and a note for lines that are none.

    Raises UserError if the file is not there or holds no vote at all although it is not empty.
    """
    try:
        lines = path.read_bytes().decode("utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file of votes") from None
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    bad: list[int] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not is_vote(row):
            bad.append(number)
        elif row.get("id") is None or row["id"] not in seen:
            seen |= {row["id"]} if row.get("id") is not None else set()
            rows.append(row)
    if bad and not rows:
        raise UserError(f"{path}:{bad[0]}: is not a vote, nor is any other line; expected rows of sd3-jax vote")
    lost = f"{path}:{bad[0]}: is not a vote" if bad else ""
    more = f" (nor are {len(bad) - 1} other lines)" if len(bad) > 1 else ""
    return rows, [f"{lost}{more}; left out"] if bad else []


def is_vote(row: Any) -> bool:
    """Whether an object says who prefers what to what, of which prompt."""
    texts = ("rater", "axis", "model_a", "model_b")
    return (
        isinstance(row, dict)
        and all(isinstance(row.get(key), str) for key in texts)
        and row["model_a"] != row["model_b"]
        and row.get("winner") in WINNERS
        and isinstance(row.get("prompt_id"), int | str)
        and all(isinstance(row.get(key), str | None) for key in ("id", "prompt", "item", "left", "partial"))
    )


def standing(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The last answer of each rater to each question about each pair, in the order of the answers; undone ones are not.

    >>> row = dict(rater="r", axis="quality", prompt_id=0, model_a="x", model_b="y", item="i")
    >>> [one["winner"] for one in standing([row | {"winner": "a"}, row | {"winner": "b"}])]
    ['b']
    """
    last: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        key = row["rater"], row["axis"], pair_of(row)
        last.pop(key, None)
        last[key] = dict(row)
    return [row for row in last.values() if row["winner"] != "undone"]


def pair_of(row: Mapping[str, Any]) -> Any:
    """What a vote is about: its item, or else the prompt and the pictures of the two systems."""
    if row.get("item") is not None:
        return row["item"]
    sides = [(row[f"model_{side}"], str(row.get(f"image_{side}"))) for side in "ab"]
    return str(row["prompt_id"]), *sorted(sides)


def of_rater(rows: Iterable[Mapping[str, Any]], rater: str, ballot: Ballot) -> list[dict[str, Any]]:
    """A rater's standing answers to this ballot, as the page knows them: sides for names."""
    found = []
    for row in standing(row for row in rows if row["rater"] == rater):
        comparison = ballot.comparisons.get(row.get("item") or "")
        if comparison is not None and row.get("left") in ("a", "b"):
            left = comparison.a if row["left"] == "a" else comparison.b
            side = {"a": "left", "b": "right"} if row["left"] == "a" else {"a": "right", "b": "left"}
            winner = side.get(row["winner"], row["winner"])
            found.append({"axis": row["axis"], "item": row["item"], "left": left.token, "winner": winner})
    return found


def import_answers(paths: Collection[Path], ballot: Ballot, votes: Path) -> int:
    """Add the answers that pages of an export have saved; those that are there already are not added again.

    Returns how many were new. Raises UserError for a line that is no answer to this ballot, and adds nothing then.
    """
    known = {row.get("id") for row in read(votes)[0]} if votes.exists() else set()
    new: dict[str, dict[str, Any]] = {}
    for path in paths:
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), 1):
            if not line.strip():
                continue
            try:
                answer = json.loads(line)
                row = row_of(answer, ballot, _when(answer))
            except (ValueError, RecursionError):
                raise UserError(f"{path}:{number}: is not JSON") from None
            except UserError as error:
                raise UserError(f"{path}:{number}: {error}") from None
            if row["id"] not in known:
                new.setdefault(row["id"], row)
    for row in new.values():
        append(votes, row)
    return len(new)


def _when(answer: Any) -> float | None:
    """When an answer was given, in seconds, if it says so."""
    moment = answer.get("time") if isinstance(answer, dict) else None
    return moment if isinstance(moment, int | float) and 0 <= moment < 1e11 else None
