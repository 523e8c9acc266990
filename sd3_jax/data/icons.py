"""What packages of emoji and clip art call their pictures, and how that is said in a sentence.

Every picture has a name in words (CLDR's where its code point is known, else the package's), a style, a group, and a
concept: the name without who does it and which way they face, equal for equal things in every package.
"""

import html
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

TONES = "light|medium-light|medium|medium-dark|dark"
# How a picture of each style is introduced.
STYLES = {
    "fluent-flat": "flat icon",
    "fluent-modern": "shaded icon",
    "fluent-3d": "3D icon",
    "noto": "cartoon icon",
    "noto-v1": "early cartoon icon",
    "twemoji": "simple icon",
    "openmoji": "outlined icon",
    "clipart": "clip-art picture",
}
_PEOPLE = {"man", "woman", "men", "women", "person", "people", "boy", "girl", "male", "female"}
_PREPOSITION = re.compile(r" (?:with|of|in|on|and|at|over|behind|without|holding|from|for|under|by|to)\b|[:,(]")
_VOWELS_SAID_OTHERWISE = re.compile(r"(?:uni(?!n)|use|us[aeu]|uti|eu|ew|one\b|once\b|u\b|ufo|u-)", re.IGNORECASE)
_SILENT_H = re.compile(r"(?:hour|hono|heir)", re.IGNORECASE)
_SAID_AS_WORDS = {"NEW", "COOL", "FREE", "SOON", "TOP", "BACK", "END", "ON"}
_NO_ARTICLE = {"bacon", "bread", "rice", "honey", "ice", "fire", "water", "cheese", "butter", "hail", "fog", "sweat"}
_DETERMINERS = {"a", "an", "the", "no", "my", "two", "three", "people", "men", "women"}
# Folders of Open Clip Art that hold parts of themes and of drawings, or nothing to name.
_THEMES = re.compile(
    r"(?:computer/(?:icons|buttons)|shapes/(?:stars|jigsaw|flowchart|callouts)|special|logos"
    r"|signs_and_symbols/(?:led|map_symbols)|recreation/games/cards|unsorted/duplicates)(?:/|$)"
)
_COLLECTION = 12  # files of one title, of which it is no name but a collection's


@dataclass(frozen=True)
class Icon:
    """A picture as its package has it, or (``flaw`` is not empty) why it is left out."""

    style: str
    key: str  # unique in its style
    name: str
    group: str
    data: bytes  # an SVG or a WebP
    toned: bool = False  # of a skin tone
    flaw: str = ""


class Names(NamedTuple):
    """CLDR's names and groups in English: by code point, by slug, and the words in them."""

    by_code: Mapping[str, tuple[str, str]]
    by_slug: Mapping[str, tuple[str, str]]
    words: frozenset[str]


def slug(text: str) -> str:
    """Lower-case words joined by hyphens, ASCII alone; apostrophes join.

    >>> slug("Piñata"), slug("woman’s hat"), slug("../../etc")
    ('pinata', 'womans-hat', 'etc')
    """
    plain = unicodedata.normalize("NFKD", re.sub("['’]", "", text)).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")


def concept(name: str) -> str:
    """What is held out as one: every package's picture of it, whoever does it, in whatever tone of skin.

    >>> concept("woman firefighter: dark skin tone"), concept("firefighter"), concept("man")
    ('firefighter', 'firefighter', 'man')
    """
    words = re.sub(rf"^an?-|-(?:{TONES})-skin-tone\b|-facing-right\b|-\d+$", "", slug(name)).split("-")
    return "-".join([word for word in words if word not in _PEOPLE] or words)


def said(name: str) -> str:
    """A name as a noun phrase, with the article that it takes.

    >>> [said(name) for name in ("guide dog", "owl", "unicorn", "hourglass done", "flag: Belgium", "eyes", "UFO")]
    ['a guide dog', 'an owl', 'a unicorn', 'an hourglass done', 'the flag of Belgium', 'eyes', 'a UFO']
    """
    kind, _, rest = name.partition(": ")
    if kind == "flag" and rest:
        return f"the flag of {rest}"
    head = re.split(r"\W+", _PREPOSITION.split(name, maxsplit=1)[0].strip())[-1].lower()
    first = name.split(" ", 1)[0]
    plural = len(head) > 3 and head.endswith("s") and not head.endswith(("ss", "us", "is", "as", "os"))
    if plural or head in _NO_ARTICLE or first.lower() in _DETERMINERS:
        return name
    return f"{_article(first)} {name}"


def _article(word: str) -> str:
    spelt = re.match(r"[A-Z]{2,}\b|[A-Za-z]\b", word)  # letter by letter: an SOS button, a B button, an X-ray
    if spelt and spelt[0] not in _SAID_AS_WORDS:
        return "an" if spelt[0][0].upper() in "AEFHILMNORSX" else "a"
    if word[:1].isdigit():
        return "an" if re.match(r"8|1[18](?!\d)", word) else "a"
    if _SILENT_H.match(word):
        return "an"
    return "an" if word[:1].lower() in "aeiou" and not _VOWELS_SAID_OTHERWISE.match(word) else "a"


def sentence(name: str, style: str, group: str) -> str:
    """The synthetic caption.

    >>> sentence("guide dog", "fluent-flat", "animals & nature")
    'a flat icon of a guide dog, animals & nature'
    >>> sentence("owl", "openmoji", "")
    'an outlined icon of an owl'
    """
    kind = STYLES[style]
    return f"{_article(kind)} {kind} of {said(name)}" + (f", {group}" if group else "")


def read_names(files: Mapping[str, bytes]) -> Names:
    """Names from emojibase-data: ``en/data.json`` and ``meta/groups.json``."""
    groups = json.loads(files["meta/groups.json"])["groups"]
    by_code, words = {}, set()
    for emoji in json.loads(files["en/data.json"]):
        for each in (emoji, *emoji.get("skins", ())):
            by_code[_code(each["hexcode"])] = (each["label"], _group(groups.get(str(each.get("group")), "")))
        words |= {word for text in (emoji["label"], *emoji.get("tags", ())) for word in slug(text).split("-")}
    by_slug = {slug(name): (name, group) for name, group in by_code.values()}
    return Names(by_code, by_slug, frozenset(word for word in words if len(word) > 2))


def _code(text: str) -> str:
    """A sequence of code points, without the selectors of variants, which packages leave out as they like."""
    return re.sub(r"-fe0f|-fe0e", "", text.lower().replace("_", "-"))


def _group(text: str) -> str:
    named = {"smileys-emotion", "people-body", "animals-nature", "food-drink", "travel-places"}
    if text in named:
        return text.replace("-", " & ")
    return "" if text in ("component", "unsorted") else re.sub(r"[-_]", " ", text)


def fluent(files: Mapping[str, bytes], names: Names) -> Iterable[Icon]:
    """Fluent's flat and modern pictures; those of high contrast are black glyphs."""
    keys = {name.removeprefix("icons/").removesuffix(".svg"): name for name in files if name.endswith(".svg")}
    for key in sorted(keys):
        kind, _, stem = key.partition("/")
        base = re.sub(rf"(?:-(?:{TONES}|default))+$", "", stem)
        toned = base != stem and f"{kind}/{base}-default" in keys
        base, toned = (base, stem != f"{base}-default") if toned else (stem, False)
        name, group = names.by_slug.get(slug(base), (base.replace("-", " "), ""))
        flaw = "high contrast: a black glyph" if kind == "high-contrast" else ""
        yield Icon(f"fluent-{kind}", stem, name, group, files[keys[key]], toned, flaw)


def fluent_3d(files: Mapping[str, bytes], names: Names) -> Iterable[Icon]:
    """Fluent's rendered pictures, which are named by code point alone."""
    for path in sorted(path for path in files if path.endswith(".webp")):
        code = _code(path.removeprefix("assets/").removesuffix(".webp"))
        name, group = names.by_code.get(code, ("", ""))
        yield Icon("fluent-3d", code, name, group, files[path], _toned(code), "" if name else "no name")


def iconify(style: str, files: Mapping[str, bytes], names: Names) -> Iterable[Icon]:
    """A set of Iconify: the insides of SVGs by key, and the code point of each key."""
    icons = json.loads(files["icons.json"])
    codes = {key: _code(code) for code, key in json.loads(files["chars.json"]).items()}
    if not codes:  # a set that is no longer updated has none
        codes = {key: "1f3fb-" if "-skin-tone" in key else "" for key in icons["icons"]}
    for key, icon in sorted(icons["icons"].items()):
        if key not in codes:
            yield Icon(style, key, key, "", b"", flaw="no longer in Unicode")
            continue
        code = codes[key]
        name, group = names.by_code.get(code) or names.by_slug.get(key) or (key.replace("-", " "), "")
        width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
        box = f"{icon.get('left', 0)} {icon.get('top', 0)} {width} {height}"
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{box}">'
        yield Icon(style, key, name, group, f"{svg}{icon['body']}</svg>".encode(), _toned(code))


def openmoji(files: Mapping[str, bytes], names: Names) -> Iterable[Icon]:
    """OpenMoji's colour pictures, its own additions among them."""
    for emoji in sorted(json.loads(files["data/openmoji.json"]), key=lambda emoji: emoji["hexcode"]):
        code = emoji["hexcode"]
        name, group = names.by_code.get(_code(code), (emoji["annotation"], ""))
        if not group:
            group = _group(emoji["subgroups"] if emoji["group"].startswith("extras") else emoji["group"])
        svg = files.get(f"color/svg/{code}.svg", b"")
        flaw = "a trademark" if emoji["subgroups"] == "brand" else "" if svg else "no picture"
        yield Icon("openmoji", code.lower(), name, group, svg, bool(emoji["skintone"]), flaw)


def clipart(files: Mapping[str, bytes], names: Names) -> Iterable[Icon]:
    """Open Clip Art with titles that name what is drawn, of the public domain, outside themes."""
    root = "usr/share/openclipart/svg/"
    paths = sorted(path for path in files if path.startswith(root) and path.endswith(".svg"))
    texts = {path.removeprefix(root): files[path].decode("utf-8", "replace") for path in paths}
    titles = {path: _inner("dc:title", text) for path, text in texts.items()}
    often = Counter(titles.values())
    for path, text in texts.items():
        folder = path.rpartition("/")[0]
        name = clean(titles[path])
        if often[titles[path]] >= _COLLECTION or "Nicu Buculei" in titles[path] or not _known(name, names):
            name = _from_file(path, _inner("dc:creator", text), names)
        group = _group(folder.partition("/")[0])
        if "/flags" in folder:
            name, group = name if "flag" in name.lower() or not name else f"flag: {name}", "flags"
        licence = re.search(r"<cc:license[^>]*resource=\"([^\"]*)\"", text)
        if not licence or "publicdomain" not in licence[1].lower():
            flaw = "not said to be of the public domain"
        elif _THEMES.match(folder):
            flaw = "part of a theme, or of a drawing"
        else:
            flaw = "" if name else "neither title nor file is named in English"
        yield Icon("clipart", slug(path[:-4]), name, group, files[root + path], flaw=flaw)


def _known(name: str, names: Names) -> bool:
    return bool(names.words & set(slug(name).split("-")))


def _from_file(path: str, creator: str, names: Names) -> str:
    """The name in a file's name, without its creator's and numbers; empty unless CLDR knows every word of it."""
    own = slug(re.sub(r"<[^>]*>", " ", creator)).split("-")
    words = slug(path.rpartition("/")[2].removesuffix(".svg")).split("-")
    words = [word for word in words if word not in ("bw", "simple", "simpl") and re.search("[a-z]{2}", word)]
    words = [word for word in words if not any(each.startswith(word) for each in own)]
    return " ".join(words) if words and names.words.issuperset(words) else ""


def _inner(tag: str, text: str) -> str:
    found = re.search(rf"<{tag}[^>]*>(.*?)</{tag}>", text, re.DOTALL)
    return html.unescape(" ".join(found[1].split())) if found else ""


def clean(title: str) -> str:
    """A title of Open Clip Art without its author, its number and its remarks; empty if no name is left.

    >>> clean("Crawfish (B and W)"), clean("Clipart by Jeff Smith - Christian"), clean("wedding rings2"), clean("#101")
    ('Crawfish', 'Christian', 'wedding rings', '')
    """
    title = re.sub(
        r"^Clipart by .*? - |\(.*?\)|\bopenclipart\b|\b[bB][_ ]?[wW]\b|[|\"].*", " ", title.replace("_", " ")
    )
    title = " ".join(re.sub(r"[#\d]+\s*$", "", title.strip()).split()).strip(" -.,")
    title = title if " " in title else title.replace("-", " ")
    letters = sum(map(str.isalpha, title))
    usual = letters >= 3 and len(title.split()) <= 8 and not re.search(r"[@/<>]|http", title)
    return title if usual else ""


def _toned(code: str) -> bool:
    return re.search(r"1f3f[b-f]", code) is not None and "-" in code
