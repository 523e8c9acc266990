"""What is voted on: pairs of pictures of one prompt, by two systems, under names that do not give them away.

A token stands for a picture outside this process. It is a hash of the system's name and of the picture itself: it says
nothing to who does not have the picture, it is the same after a restart, and a picture that was drawn anew has another.
"""

import hashlib
import io
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from sd3_jax.errors import UserError
from sd3_jax.evaluation import folders, prompts, typography

# The paper's three questions (section 6.3), each asked by itself.
QUESTIONS = {
    "following": "Which picture follows the prompt more faithfully?",
    "quality": "Which picture is of higher quality and more pleasing, given the prompt?",
    "typography": "Which picture spells the requested text more accurately, ignoring all else?",
}
_KINDS = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}


@dataclass(frozen=True)
class Picture:
    """A picture of a system."""

    system: str
    path: Path
    name: str  # the path within the system's folder
    token: str
    kind: str  # media type


@dataclass(frozen=True)
class Comparison:
    """Two pictures of one prompt; which is ``a`` follows the order of the systems, and never leaves this process."""

    item: str
    prompt_id: int
    prompt: str
    a: Picture
    b: Picture


@dataclass(frozen=True)
class Ballot:
    """Everything that a rater is asked."""

    systems: tuple[str, ...]
    comparisons: Mapping[str, Comparison]  # by item
    questions: Mapping[str, frozenset[str]]  # the items that each axis asks about
    seed: int
    notes: tuple[str, ...]
    partial: str | None = None  # what is lacking

    @property
    def pictures(self) -> dict[str, Picture]:
        """Every picture that is shown, by its token."""
        return {one.token: one for comparison in self.comparisons.values() for one in (comparison.a, comparison.b)}

    def shown(self) -> dict[str, Any]:
        """What the page is told: no names, no order of systems, pictures as tokens."""
        rows = sorted(self.comparisons.values(), key=lambda comparison: comparison.item)
        return {
            "id": _hash("ballot", str(self.seed), *(row.item for row in rows)),
            "seed": self.seed,
            "questions": [
                {"axis": axis, "text": QUESTIONS[axis], "items": sorted(items)}
                for axis, items in self.questions.items()
            ],
            "items": {row.item: {"prompt": row.prompt, "pictures": sorted([row.a.token, row.b.token])} for row in rows},
        }


def make_ballot(
    systems: Mapping[str, Path],
    prompts_file: Path | None = None,
    images: int = 1,
    axes: Sequence[str] = tuple(QUESTIONS),
    seed: int = 0,
    allow_partial: bool = False,
) -> Ballot:
    """Every pair of systems on every prompt, with the first ``images`` pictures of each; all of them are looked at.

    Typography is asked of prompts that ask for text alone: words in quotation marks, or a field ``text`` in a
    ``.jsonl``. Without a prompt file the prompts are those that the first folder in GenEval's layout says.

    Raises UserError for fewer than two systems, an unknown axis, a bad prompt file or folder, and for pictures that
    are missing or cannot be read, unless ``allow_partial``, when they are left out.
    """
    if len(systems) < 2:
        raise UserError("a vote needs two folders of pictures or more")
    unknown = [axis for axis in axes if axis not in QUESTIONS]
    if unknown or not axes:
        raise UserError(f"question {(unknown or [''])[0]!r} is not one of {', '.join(QUESTIONS)}")
    asked, where = _asked(systems, prompts_file)
    texts = list(asked)
    found = {name: folders.pictures_of(folder, texts, where) for name, folder in systems.items()}
    lacking = [
        _lacking(name, systems[name], [i for i in range(len(texts)) if len(own.get(i, [])) < images], texts)
        for name, own in found.items()
    ]
    notes = _surplus(found, images)
    pictures: dict[tuple[str, int, int], Picture] = {}
    for name, own in found.items():
        for number, paths in sorted(own.items()):
            for index, path in enumerate(paths[:images]):
                try:
                    pictures[name, number, index] = _look(name, systems[name], path)
                except UserError as error:
                    lacking.append(str(error))
    problems = [problem for problem in lacking if problem]
    more = f" (and {len(problems) - 1} more like it)" if len(problems) > 1 else ""
    partial = f"{problems[0]}{more}" if problems else None
    if partial and not allow_partial:
        raise UserError(f"{partial}; --partial votes on the other pictures")
    comparisons = {}
    for number, index in itertools.product(range(len(texts)), range(images)):
        for first, second in itertools.combinations(systems, 2):
            a, b = pictures.get((first, number, index)), pictures.get((second, number, index))
            if a and b:
                item = _hash("item", *sorted((a.token, b.token)), texts[number])
                comparisons[item] = Comparison(item, number, texts[number], a, b)
    asks = [bool(typography.requested({**metadata, "prompt": text})) for text, metadata in asked.items()]
    everything = frozenset(comparisons)
    written = frozenset(item for item, one in comparisons.items() if asks[one.prompt_id])
    questions = {axis: written if axis == "typography" else everything for axis in axes}
    if "typography" in axes and not written:
        notes.append("no prompt asks for text in quotation marks: typography is not asked")
    questions = {axis: items for axis, items in questions.items() if items}
    if not questions:
        raise UserError(f"{where}: there is nothing to vote on{': ' + partial if partial else ''}")
    return Ballot(tuple(systems), comparisons, questions, seed, tuple(notes), partial)


def _asked(systems: Mapping[str, Path], prompts_file: Path | None) -> tuple[dict[str, Mapping[str, Any]], str]:
    """The metadata of each prompt, in order, and where they are from."""
    if prompts_file is not None:
        captions = prompts.read_texts(prompts_file)
        return {caption.text.strip(): caption.metadata for caption in captions}, str(prompts_file)
    for folder in systems.values():
        if folder.is_dir() and any(path.is_dir() and path.name.isdigit() for path in folder.iterdir()):
            return {metadata["prompt"].strip(): metadata for _, metadata, _ in folders.read_folder(folder)}, str(folder)
    raise UserError("no folder says what its pictures were asked for: give --prompts FILE")


def picture_bytes(picture: Picture) -> bytes:
    """The file of a picture. Raises UserError if it is no longer what was looked at."""
    try:
        content = picture.path.read_bytes()
    except OSError:
        raise UserError(f"{picture.path}: cannot be read any more") from None
    if _token(picture.system, content) != picture.token:
        raise UserError(f"{picture.path}: is another picture than when the vote began")
    return content


def _look(system: str, folder: Path, path: Path) -> Picture:
    """Look at a picture, to the end of its file."""
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            kind = _KINDS[image.format or ""]
            if image.format == "PNG":
                image.verify()  # its own checksums
            else:
                image.load()
    except (OSError, ValueError, SyntaxError, KeyError, Image.DecompressionBombError):  # Pillow raises all of them
        raise UserError(f"{path}: cannot be read as a picture (PNG, JPEG or WebP)") from None
    return Picture(system, path, path.relative_to(folder).as_posix(), _token(system, content), kind)


def _lacking(name: str, folder: Path, numbers: Sequence[int], texts: Sequence[str]) -> str:
    if not numbers:
        return ""
    return f"{folder}: {len(numbers)} of {len(texts)} prompts lack a picture, the first is {texts[numbers[0]]!r}"


def _surplus(found: Mapping[str, Mapping[int, Sequence[Path]]], images: int) -> list[str]:
    surplus = sum(max(0, len(paths) - images) for own in found.values() for paths in own.values())
    return [f"{surplus:,} pictures more than --images {images} of each prompt are not voted on"] if surplus else []


def _token(system: str, content: bytes) -> str:
    return _hash("picture", system, hashlib.blake2b(content, digest_size=32).hexdigest())


def _hash(*parts: str) -> str:
    """24 hex digits; what comes first keeps hashes of different things apart."""
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=12).hexdigest()
