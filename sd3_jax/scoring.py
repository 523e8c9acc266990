"""The story of a system's scores: what is drawn for each suite, who judges it, and what is written down.

Judges are loaded once for all systems. What cannot be read or is missing of a system is left out, and marks its rows as
partial; nothing is drawn, judged or measured twice.
"""

import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sd3_jax import records, systems
from sd3_jax.errors import UserError
from sd3_jax.evaluation import (
    between,
    compbench,
    compbench_files,
    compbench_prompts,
    features,
    folders,
    prompts,
    scorer,
    suites,
    upstream,
)
from sd3_jax.evaluation.between import Measured, Source
from sd3_jax.evaluation.features import Extractor
from sd3_jax.evaluation.generate import Report, Sampler
from sd3_jax.evaluation.prompts import Prompt
from sd3_jax.evaluation.scorer import Said, Scorer
from sd3_jax.evaluation.scores import OVERALL
from sd3_jax.evaluation.suites import SUITES
from sd3_jax.scorers import choose
from sd3_jax.systems import System

Progress = Callable[[str, int], AbstractContextManager[Report]]  # what is done, and of how many pictures
IMAGES = 4  # of each prompt, unless told


@dataclass(frozen=True)
class Asked:
    """What a suite is told besides the systems."""

    suites: tuple[str, ...]
    scorers: Sequence[str] = ()
    prompts: Path | None = None
    images: int | None = None
    compbench: Path | None = None  # a copy of its prompts
    real: Path | None = None
    features: Sequence[str] = ("scene",)
    own: int = 600  # prompts that a run brings along


@contextmanager
def _quiet(name: str, pictures: int) -> Iterator[Report]:
    yield lambda done: None


def parse(text: str) -> tuple[str, ...]:
    """Suites by name, each once. Raises UserError for another name."""
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    if unknown := [name for name in names if name not in SUITES]:
        raise UserError(f"--suite: {unknown[0]!r} is not one of {', '.join(SUITES)}")
    return names


def systems_of(
    paths: Mapping[str, Path], sampler: Sampler, steps: Sequence[int] | None, out: Path | None
) -> list[System]:
    """The systems of paths, under their names, a run once for each step. Raises UserError for ``out`` of several."""
    if out is not None and len(paths) > 1:
        raise UserError(f"--out {out}: is of one target alone, and there are {len(paths)}")
    found = []
    for name, path in paths.items():
        own = steps if steps and (path / "config.json").is_file() else (None,)
        for step in own:
            called = name if len(own) == 1 else f"{name}@{step}"
            found.append(systems.find(path, sampler, step, out)._replace(name=called))
    return found


def score(
    found: Sequence[System], asked: Asked, reference: Path | None = None, progress: Progress = _quiet
) -> list[dict[str, Any]]:
    """The scores of systems (of ``sd3_jax.systems``) in the suites asked for, written beside each.

    Judges of preference also compare the systems with one another, or with the one at ``reference``.
    """
    extractors, real = list[Extractor](), dict[Path, _Real]()
    if "fidelity" in asked.suites:  # what is lacking is said now
        extractors = [features.load(spec) for spec in asked.features]
        for path in {_real(system, asked) for system in found}:
            source = between.find(path)
            real[path] = _Real(source._replace(content=functools.cache(source.content)), {})
    parts = _parts(asked)
    lists = {system.name: [_prompts(system, part, asked) for part in parts] for system in found}  # or it is said now
    whom = found[0].name
    if "preference" in asked.suites and len(found) > 1:
        whom = _reference(found, reference)
        at = [part.suite for part in parts].index("preference")
        _sharing({name: own[at][0] for name, own in lists.items()}, whom)
    rows: list[dict[str, Any]] = []
    rated: dict[str, dict[str, Said]] = {}  # of each judge of preference and system, what it said
    for system in found:
        for part, (wanted, where) in zip(parts, lists[system.name], strict=True):
            if part.suite == "fidelity":
                rows += _fidelity(system, wanted, where, extractors, real[_real(system, asked)], progress)
                continue
            own, said = _part(system, part, wanted, where, progress)
            rows += own
            for judge, one in said.items() if part.suite == "preference" else ():
                rated.setdefault(judge, {})[system.name] = one
        if own := [row for row in rows if row["run"] == system.name and row["name"].startswith("compbench")]:
            rows += systems.write(system, [suites.overall_of_categories(own)])
    if rated and len(found) > 1:
        rows += _compared(found, rated, rows, whom)
    return rows


def _reference(found: Sequence[System], reference: Path | None) -> str:
    """Whom the others are compared with, by name; the first unless told. Raises UserError for one that is not there."""
    if reference is None:
        return found[0].name
    chosen = [system for system in found if system.path.resolve() == reference.resolve()]
    if not chosen:
        raise UserError(f"--reference {reference}: is not one of the targets")
    return chosen[0].name


def _sharing(lists: Mapping[str, Sequence[Prompt]], whom: str) -> None:
    """Raises UserError for a system that has fewer than two prompts in common with the one it is compared with."""
    texts = {name: {prompt.text.strip() for prompt in own} for name, own in lists.items()}
    for name, own in texts.items():
        shared = len(own & texts[whom])
        if name != whom and shared < 2:
            said = f"{name} and {whom}: have {shared} of their prompts in common, and are compared on two or more"
            raise UserError(f"{said}; --prompts FILE says the same ones for all")


def _compared(
    found: Sequence[System],
    rated: Mapping[str, Mapping[str, Said]],
    scores: Sequence[Mapping[str, Any]],
    whom: str,
) -> list[dict[str, Any]]:
    """Win rates against one system, and Elo scores of all, by each judge of preference.

    ``scores`` of the systems by these judges say what they are of; where one is partial, so is every comparison.
    """
    by_name = {system.name: system for system in found}
    rows = []
    for judge, said in rated.items():
        theirs = {row["run"]: row for row in scores if row["name"] == judge and row["group"] == OVERALL}
        partial = next(({"partial": row["partial"]} for row in theirs.values() if "partial" in row), {})
        for name, own in suites.preference_rows(judge, said, whom).items():
            what = {key: theirs[name][key] for key in ("digest", "prompt_list")} | partial
            rows += systems.write(by_name[name], [row | what for row in own])
    return rows


class _Real(NamedTuple):
    """True pictures, and their features once they are measured, by the digest of what measured them."""

    source: Source
    measured: dict[str, Measured]


class _Part(NamedTuple):
    """Prompts that are drawn together, and their judges."""

    suite: str
    scorers: list[Scorer]
    category: str | None = None  # of CompBench


def _parts(asked: Asked) -> list[_Part]:
    """The judges of each suite, loaded once for all systems."""
    there = choose.folders(systems.given(asked.scorers))
    found = []
    for suite in asked.suites:
        match suite:
            case "geneval":
                found.append(_Part(suite, [choose.geneval(there)]))
            case "compbench":
                found += [_Part(suite, [judge], name) for name, judge in choose.compbench(there).items()]
            case "preference":
                found.append(_Part(suite, choose.preference(there)))
            case "typography":
                found.append(_Part(suite, [choose.typography()]))
            case "fidelity":
                found.append(_Part(suite, []))
    return found


def _part(
    system: System, part: _Part, wanted: Sequence[Prompt], where: str, progress: Progress
) -> tuple[list[dict[str, Any]], dict[str, Said]]:
    """The scores of one system by the judges of one part, and what each of them said; ``where`` prompts are from."""
    folder = _draw(system, wanted, progress)
    find = suites.find if part.category is None else suites.find_category
    found = find(folder, wanted, where if part.category is None else part.category)
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    beside = folder if system.draws else system.out  # what one setting's pictures are, another's are not
    rows, words = list[dict[str, Any]](), dict[str, Said]()
    for judge in part.scorers:
        with progress(f"{system.name}, {judge.name}", len(found.shots)) as report:
            said = scorer.ask(judge, found.shots, system.out / scorer.FILE, report)
        own = suites.rows_of(judge, said, wanted, found.problems)
        if not own:
            raise UserError(f"{folder}: no picture that {judge.name} can say anything of ({where})")
        rows += systems.write(system, own)
        words[judge.name] = said
        if part.suite == "geneval":
            verdicts = zip(said.shots, said.values, strict=True)
            lines = [upstream.result_row(str(shot.path), shot.metadata, one, judge.name) for shot, one in verdicts]
            upstream.write_results(beside / "geneval" / "results.jsonl", lines)
        if part.category is not None:
            out = beside / "compbench" / part.category
            numbered = suites.numbered(found.shots, wanted)
            if system.draws:
                compbench_files.lay_out(out, numbered)
            known = {shot.path: value for shot, value in zip(said.shots, said.values, strict=True)}
            answers = {number: known[shot.path] for number, shot in numbered.items() if shot.path in known}
            compbench_files.write_answers(out / "vqa_result.json", answers)
    return rows, words


def _prompts(system: System, part: _Part, asked: Asked) -> tuple[list[Prompt], str]:
    """The prompts of a suite, and where they are from: the benchmark's, a file's, or those that the system brings."""
    if part.category is not None:
        if asked.compbench is None:
            raise UserError("suite compbench: --compbench FOLDER says where a copy of its examples/dataset lies")
        found = prompts.compbench_texts(asked.compbench, part.category, asked.images)
        compbench.check(part.category, [prompt.metadata for prompt in found], compbench_prompts.parser())
        return found, str(asked.compbench)
    if part.suite == "geneval":
        return prompts.geneval_texts(asked.images or IMAGES), "GenEval's 553 prompts"
    if asked.prompts is not None:
        named = str(asked.prompts) == "geneval" and not asked.prompts.exists()
        images = asked.images or IMAGES
        found = prompts.geneval_texts(images) if named else prompts.read_texts(asked.prompts, images)
        if asked.images is None and not system.draws:
            found = suites.as_there_are(system.path, found, str(asked.prompts))
        return found, str(asked.prompts)
    if not system.draws:
        if part.suite == "fidelity":
            return [], "all its pictures"
        if not folders.says_prompts(system.path):
            raise UserError(f"{system.path}: does not say what its pictures are of; --prompts FILE does")
        return suites.own_prompts(system.path), "its own prompts"
    if system.own is None:
        raise UserError(f"{system.name}: --prompts FILE says what it is to draw for suite {part.suite}")
    return system.own(asked.own), "captions that were held out"


def _draw(system: System, wanted: Sequence[Prompt], progress: Progress) -> Path:
    with progress(f"{system.name}, drawing", sum(prompt.images for prompt in wanted)) as report:
        return system.pictures(wanted, report)


def _real(system: System, asked: Asked) -> Path:
    """Where the true pictures are that a system is compared with. Raises UserError if nobody says."""
    real = asked.real or system.real
    if real is None:
        raise UserError(f"{system.name}: --real FOLDER says which pictures it is compared with for suite fidelity")
    return real


def _fidelity(
    system: System,
    wanted: Sequence[Prompt],
    where: str,
    extractors: Sequence[Extractor],
    real: _Real,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Distances of a system's pictures from real ones, measured once for each content of both.

    ``wanted`` are the prompts of its pictures; none: all the pictures that are there, whatever they are of.
    """
    folder = _draw(system, wanted, progress)
    texts, problems = None, list[str]()
    if wanted:
        there = suites.find(folder, wanted, where)
        texts, problems = {shot.path: shot.metadata["prompt"] for shot in there.shots}, there.problems
    sources = [between.find(folder, texts), real.source]
    content = {
        "pictures": sources[0].content(),
        "reference_pictures": real.source.content(),
        "prompt_list": prompts.fingerprint(wanted) if wanted else None,  # and with it, what of them is lacking
    }
    known = records.read_scores(system.out / records.SCORES)[0]
    rows = []
    for extractor in extractors:
        said = content | {"features": extractor.name, "digest": extractor.digest}
        own = [row for row in known if all(row.get(key) == value for key, value in said.items())]
        if not own:
            key = f"{extractor.name}:{extractor.digest}"
            due = sources if key not in real.measured else sources[:1]
            with progress(f"{system.name}, {extractor.name}", sum(source.total for source in due)) as report:
                measured = [between.measure(source, extractor, report) for source in due]
            true = real.measured.setdefault(key, measured[-1])
            ours = measured[0]._replace(problems=[*problems, *measured[0].problems])
            found = between.rows(sources, [ours, true], extractor)
            own = [row | content for row in found if row.get("of") in (None, str(sources[0].path))]
        rows += systems.write(system, own)
    return rows
