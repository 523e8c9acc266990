"""Two sets of pictures, whatever they are kept as, and how far apart they are: from folders to rows of distances."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from sd3_jax.data import frozen, latents, pictures
from sd3_jax.data.examples import MANIFEST, read_manifest
from sd3_jax.data.latents import Prepared
from sd3_jax.errors import UserError
from sd3_jax.evaluation import distances, geneval, judged, scores
from sd3_jax.evaluation.distances import Gathered
from sd3_jax.evaluation.features import BATCH, Extractor

MOST_PIXELS = 1 << 25  # of pictures that are held at once: a tenth of a gigabyte
FEW = 10_000  # pictures of which Frechet's distance is not to be read without its extrapolation
Report = Callable[[int], None]  # how many more pictures are done


class Shown(NamedTuple):
    """A picture, and its prompt where the folder says it."""

    image: UInt8[np.ndarray, "H W 3"]
    prompt: str | None = None


class Source(NamedTuple):
    """A set of pictures: how many there should be, and a way to go through them that notes what cannot be read."""

    path: Path
    total: int
    read: Callable[[list[str]], Iterator[Shown]]
    content: Callable[[], str]  # a checksum of all that is in it


class Measured(NamedTuple):
    """A set's features as gathered, what could not be read, and how its texts fit where it has any."""

    gathered: Gathered
    problems: list[str]
    clip: geneval.Mean | None


def find(path: Path, texts: Mapping[Path, str] | None = None) -> Source:
    """The set that a folder holds: a prepared set's held-out pictures, GenEval's samples, or any pictures below it.

    A prepared set gives what its autoencoder gives back. With ``texts``, the pictures that these are prompts of make
    the set. Raises UserError for a folder without pictures.
    """
    if texts is not None:
        return _of_files(path, list(texts.items()))
    if not path.is_dir():
        raise UserError(f"{path}: no such folder of pictures")
    if (path / MANIFEST).is_file():
        return _prepared(path)
    asked = [one for one in path.iterdir() if one.name.isdigit() and (one / "samples").is_dir()]
    roots = [one / "samples" for one in sorted(asked)] or [path]
    files = [(file, _prompt(root.parent) if asked else None) for root in roots for file in _files(root)]
    if not files:
        raise UserError(f"{path}: holds no pictures ({', '.join(pictures.SUFFIXES)}) and no prepared set ({MANIFEST})")
    return _of_files(path, files)


def _of_files(path: Path, files: Sequence[tuple[Path, str | None]]) -> Source:
    """A set of files, each with its prompt where that is known."""

    def read(problems: list[str]) -> Iterator[Shown]:
        for file, prompt in files:
            try:
                yield Shown(np.asarray(pictures.decode(pictures.content_of(file))), prompt)
            except pictures.Unreadable as error:
                problems.append(f"{file}: {error}")

    def content() -> str:
        total = hashlib.sha256()
        for file, prompt in files:
            try:
                total.update(hashlib.sha256(pictures.content_of(file)).digest())
            except pictures.Unreadable:
                total.update(b"unreadable")
            total.update(repr(prompt).encode())
        return total.hexdigest()[:16]

    return Source(path, len(files), read, content)


def _files(root: Path) -> list[Path]:
    """Pictures in a folder and below it, in order; none that is hidden."""
    found = (file for file in root.rglob("*") if file.suffix.lower() in pictures.SUFFIXES)
    return sorted(file for file in found if not any(part.startswith(".") for part in file.relative_to(root).parts))


def _prompt(folder: Path) -> str | None:
    try:
        said = json.loads((folder / "metadata.jsonl").read_text(encoding="utf-8"))["prompt"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return said if isinstance(said, str) else None


def _prepared(path: Path) -> Source:
    manifest = read_manifest(path)
    prepared = Prepared(path, manifest, "validation" if manifest.count("validation") else "train")
    codec, channels = frozen.codec_of(manifest), manifest.autoencoder.channels

    def read(problems: list[str]) -> Iterator[Shown]:
        for example in latents.read_examples(prepared, range(manifest.count(prepared.split))):
            yield Shown(codec.decode(example.latent[None, ..., :channels].astype(np.float32))[0])

    return Source(path, manifest.count(prepared.split), read, lambda: f"{manifest.digest[:16]}:{prepared.split}")


def measure(source: Source, extractor: Extractor, report: Report = lambda pictures: None) -> Measured:
    """Features of all pictures of a set that can be read. Raises UserError if there are fewer than two."""
    problems: list[str] = []
    fits: list[tuple[float, str]] = []
    texts: dict[str, np.ndarray] = {}

    def embed() -> Iterator[np.ndarray]:
        for batch in _batches(source.read(problems)):
            rows = extractor.embed([one.image for one in batch])
            prompts = [one.prompt for one in batch if one.prompt is not None]
            if extractor.texts is not None and len(prompts) == len(batch):
                new = sorted(set(prompts) - texts.keys())
                texts.update(zip(new, extractor.texts(new) if new else [], strict=True))
                each = distances.clip_scores(rows, np.stack([texts[prompt] for prompt in prompts]))
                fits.extend(zip(each.tolist(), prompts, strict=True))
            report(len(batch))
            yield rows

    try:
        gathered = distances.gather(embed())
    except ValueError:
        raise UserError(f"{source.path}: none of its pictures can be read ({judged.partial(problems)})") from None
    report(len(problems))
    n = gathered.moments.n
    if n < 2:
        raise UserError(f"{source.path}: has one picture, which is at no distance; two are the least")
    clip: geneval.Mean | None = None
    if len(fits) == n:
        each, prompts = zip(*fits, strict=True)
        clip = geneval.clustered_mean(np.array(each), np.unique(prompts, return_inverse=True)[1])
    return Measured(gathered, problems, clip)


def _batches(shown: Iterator[Shown]) -> Iterator[list[Shown]]:
    """As many pictures as are worth it, and no more than fit."""
    batch: list[Shown] = []
    for one in shown:
        batch.append(one)
        if len(batch) == BATCH or sum(each.image.size for each in batch) > 3 * MOST_PIXELS:
            yield batch
            batch = []
    if batch:
        yield batch


def rows(sources: Sequence[Source], measured: Sequence[Measured], extractor: Extractor) -> list[dict[str, Any]]:
    """Every distance of two sets in these features, and each set's CLIP score, each with its error and numbers.

    ``se`` is a standard error. Names say the features.
    """
    one, other = (each.gathered for each in measured)
    plain = distances.frechet_of(one, other)
    far = distances.extrapolate(one, other, plain)
    kernel = distances.kid(one.rows, other.rows)
    found: list[tuple[str, float, float, dict[str, Any]]] = [
        ("fd", plain.value, plain.se, {}),
        ("fd-extrapolated", far.value, far.se, {"linear": far.linear}),
        (
            "kid",
            kernel.value,
            kernel.se,
            {
                "subset": min(distances.SUBSET, len(one.rows), len(other.rows)),
                "subset_deviation": kernel.deviation,
            },
        ),
    ]
    if extractor.name == "clip":
        discrepancy = distances.cmmd(one.rows, other.rows)
        found += [
            ("cmmd", discrepancy.published, discrepancy.se, {}),
            ("cmmd-unbiased", discrepancy.unbiased, discrepancy.se, {}),
        ]
    problems = [problem for each in measured for problem in each.problems]
    said = {
        "group": scores.OVERALL,
        "n": one.moments.n,
        "reference_n": other.moments.n,
        "features": extractor.name,
        "digest": extractor.digest,
        "dimensions": one.rows.shape[1],
        "reference": str(sources[1].path),
        **({"partial": judged.partial(problems)} if problems else {}),
    }
    told: list[dict[str, Any]] = [
        {"name": f"{name}-{extractor.name}", "value": value, "se": se, **said, **own} for name, value, se, own in found
    ]
    for source, each in zip(sources, measured, strict=True):
        if each.clip is not None:
            own = {"value": each.clip.value, "se": each.clip.se, "n": each.clip.images, "prompts": each.clip.prompts}
            told.append({"name": "clip-score", **said, **own, "reference": None, "of": str(source.path)})
    return told
