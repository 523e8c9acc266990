"""Captions and their words, prompts in GenEval's form, what is held out of training, and prompt files."""

import collections
import dataclasses
import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sd3_jax.data import captions, composition, scenes
from sd3_jax.data.composition import COLORS, RELATIONS, SHAPES, TASKS
from sd3_jax.errors import UserError
from sd3_jax.evaluation import prompts
from sd3_jax.evaluation.prompts import GROUPS
from sd3_jax.experiments import load_experiment
from sd3_jax.overlays import resolve

SETTINGS = ("scenes_cpu", "scenes_gpu")
settings = pytest.mark.parametrize("name", SETTINGS)
PLURALS = {shape: {"cross": "crosses"}.get(shape, shape + "s") for shape in SHAPES}
DRAWN = 20_000  # scenes of a split: enough for each caption of the small tasks to come


@functools.lru_cache
def data_of(name):
    return resolve(load_experiment(name)).data


def noun(*words):
    phrase = " ".join(words)
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


@functools.lru_cache
def all_captions(name):
    """Every caption of each task as GenEval's grammar has it, and what it states, written out: (caption, facts).

    A fact is (shape, colour), or (relation, shape, other shape).
    """
    data = data_of(name)
    shapes, colors = SHAPES[: data.shapes], COLORS[: data.colors]
    of = "a photo of "
    pairs = list(itertools.permutations(shapes, 2))
    return {
        "single_object": [(of + noun(s), []) for s in shapes],
        "two_object": [(f"{of}{noun(s)} and {noun(t)}", []) for s, t in pairs],
        "counting": [(f"{of}{n} {PLURALS[s]}", []) for n in ("two", "three", "four") for s in shapes],
        "colors": [(of + noun(c, s), [(s, c)]) for c in colors for s in shapes],
        "position": [(f"{of}{noun(s)} {r} {noun(t)}", [(r, s, t)]) for r in RELATIONS for s, t in pairs],
        "color_attr": [
            (f"{of}{noun(c, s)} and {noun(d, t)}", [(s, c), (t, d)])
            for s, t in pairs
            for c, d in itertools.permutations(colors, 2)
        ],
    }


def is_new(fact, data):
    """Whether a fact is held out of training."""
    if len(fact) == 2:
        shape, color = fact
        held = composition.held_out_pairs(data.shapes, data.colors, data.held_out)
        return held[SHAPES.index(shape), COLORS.index(color)]
    relation, shape, other = fact
    held = composition.held_out_relations(data.shapes, data.held_out)
    return held[RELATIONS.index(relation), SHAPES.index(shape), SHAPES.index(other)]


@functools.lru_cache
def drawn_captions(name, split):
    """The captions of many drawn scenes by task, each a sentence, counted."""
    data = data_of(name)

    @jax.jit
    def draw(example):
        key = jax.vmap(lambda i: scenes.example_key(0, scenes.EVALUATION, 5, i))(example)
        scene = jax.vmap(lambda k: scenes.draw(k, data, split))(key)
        return scene.task, jax.vmap(captions.caption_words)(scene)

    task, words = map(np.asarray, draw(jnp.arange(DRAWN)))
    found = {}
    for index in range(len(TASKS)):
        rows, number = np.unique(words[task == index], axis=0, return_counts=True)
        found[TASKS[index]] = {captions.sentence(row): int(n) for row, n in zip(rows, number, strict=True)}
    return found


# --- sentences and words --------------------------------------------------------------------------------------------


@settings
def test_parse_and_sentence_are_inverse_for_every_caption(name) -> None:
    for task, rows in all_captions(name).items():
        for text, _ in rows:
            words = captions.parse(text)
            assert words.shape == (captions.SLOTS,)
            assert captions.sentence(words) == text, task
    for task, split in GROUPS:
        for words in prompts.captions_of(data_of(name), task, split):
            np.testing.assert_array_equal(captions.parse(captions.sentence(words)), words)


@pytest.mark.parametrize(
    "text,words",
    [
        ("a photo of a red circle and a blue star", ["a", "red", "circle", "and", "blue", "star"]),
        ("a photo of an orange ring and a white cross", ["a", "orange", "ring", "and", "white", "cross"]),
        ("a photo of a ring below a cross", ["a", "", "ring", "below", "", "cross"]),
        ("a photo of a heart right of a diamond", ["a", "", "heart", "right of", "", "diamond"]),
        ("a photo of a square and a triangle", ["a", "", "square", "and", "", "triangle"]),
        ("a photo of four crosses", ["four", "", "cross", "", "", ""]),
        ("a photo of a heart", ["a", "", "heart", "", "", ""]),
        ("a photo of a black heart", ["a", "black", "heart", "", "", ""]),
        ("a black heart", ["a", "black", "heart", "", "", ""]),
        ("  a photo of two stars.\n", ["two", "", "star", "", "", ""]),
        ("a photo of a orange star", ["a", "orange", "star", "", "", ""]),
    ],
)
def test_words_stand_in_their_slots(text, words) -> None:
    assert [captions.VOCABULARY[word] for word in captions.parse(text)] == words


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a photo of",
        "a photo of a",
        "circle",
        "a photo of circle",
        "a photo of a hexagon",
        "a photo of a turquoise circle",
        "a photo of a red",
        "a photo of a circle red",
        "a photo of a red blue circle",
        "a photo of a red  circle",
        "A photo of a red circle",
        "a picture of a red circle",
        "a photo of a red circle!",
        "a photo of a red circle..",
        "a photo of a circles",
        "a photo of two circle",
        "a photo of two cross",
        "a photo of two crosss",
        "a photo of one circle",
        "a photo of five circles",
        "a photo of 2 circles",
        "a photo of a two circles",
        "a photo of two red circles",
        "a photo of two circles and a star",
        "a photo of two circles left of a star",
        "a photo of a circle and two stars",
        "a photo of a circle and",
        "a photo of a circle and star",
        "a photo of a circle and a circle",
        "a photo of a red circle and a blue circle",
        "a photo of a circle left of a circle",
        "a photo of a circle or a star",
        "a photo of a circle left a star",
        "a photo of a circle to the left of a star",
        "a photo of a circle over a star",
        "a photo of a red circle and a star",
        "a photo of an orange ring and a cross",
        "a photo of a circle and a red star",
        "a photo of a red circle left of a blue star",
        "a photo of a red circle left of a star",
        "a photo of a circle above a blue star",
        "a photo of a circle and a star and a ring",
        "a photo of a circle above a star above a ring",
        "a photo of a circle\na photo of a star",
        "a photo of a photo of a circle",
    ],
)
def test_what_is_no_caption_is_refused(text) -> None:
    with pytest.raises(UserError) as error:
        captions.parse(text)
    assert str(error.value).startswith(f"{text!r} is not a caption of scenes")
    assert "\n" not in str(error.value)


# --- metadata -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "expected",
    [
        {"tag": "single_object", "include": [{"class": "ring", "count": 1}], "prompt": "a photo of a ring"},
        {
            "tag": "two_object",
            "include": [{"class": "ring", "count": 1}, {"class": "star", "count": 1}],
            "prompt": "a photo of a ring and a star",
        },
        {
            "tag": "counting",
            "include": [{"class": "cross", "count": 3}],
            "exclude": [{"class": "cross", "count": 4}],
            "prompt": "a photo of three crosses",
        },
        {
            "tag": "colors",
            "include": [{"class": "ring", "count": 1, "color": "orange"}],
            "prompt": "a photo of an orange ring",
        },
        {
            "tag": "position",
            "include": [
                {"class": "star", "count": 1},
                {"class": "ring", "count": 1, "position": ["right of", 0]},
            ],
            "prompt": "a photo of a ring right of a star",
        },
        {
            "tag": "color_attr",
            "include": [
                {"class": "ring", "count": 1, "color": "purple"},
                {"class": "star", "count": 1, "color": "black"},
            ],
            "prompt": "a photo of a purple ring and a black star",
        },
    ],
    ids=lambda row: row["tag"],
)
def test_metadata_is_genevals_to_the_letter(expected) -> None:
    found = prompts.metadata(captions.parse(expected["prompt"]))
    assert json.dumps(found) == json.dumps(expected)  # the order of the keys too


@settings
def test_each_task_has_its_form(name) -> None:
    for task, rows in all_captions(name).items():
        for text, facts in rows:
            found = prompts.metadata(captions.parse(text))
            keys = ["tag", "include", *(["exclude"] if task == "counting" else []), "prompt"]
            assert list(found) == keys
            assert (found["tag"], found["prompt"]) == (task, text)
            clauses = found["include"]
            stated = [(clause["class"], clause["color"]) for clause in clauses if "color" in clause]
            for clause in clauses:
                if "position" in clause:
                    relation, index = clause["position"]
                    assert index == 0
                    stated.append((relation, clause["class"], clauses[index]["class"]))
            assert stated == facts
            if task == "position":  # what is referred to comes first
                assert "position" not in clauses[0]
                assert text.endswith(clauses[0]["class"])
            else:  # as the caption names them
                where = [text.index(clause["class"]) for clause in clauses]
                assert where == sorted(where)


# --- what is held out -----------------------------------------------------------------------------------------------


@settings
def test_captions_of_a_split_are_those_whose_facts_are_new_or_not(name) -> None:
    data = data_of(name)
    for task, rows in all_captions(name).items():
        unseen = {text for text, facts in rows if any(is_new(fact, data) for fact in facts)}
        for split, expected in (("seen", {text for text, _ in rows} - unseen), ("unseen", unseen)):
            words = prompts.captions_of(data, task, split)
            found = [captions.sentence(row) for row in words]
            assert len(found) == len(set(found))
            assert set(found) == expected
            assert all(prompts.split_of(row, data) == split for row in words)
        assert bool(unseen) == ((task, "unseen") in GROUPS)


@settings
@pytest.mark.parametrize("split", ["seen", "unseen"])
def test_captions_of_a_split_are_those_of_drawn_scenes(name, split) -> None:
    data, drawn = data_of(name), drawn_captions(name, split)
    total = sum(sum(number.values()) for number in drawn.values())
    assert total == DRAWN
    for task in TASKS:
        expected = {captions.sentence(words) for words in prompts.captions_of(data, task, split)}
        assert set(drawn[task]) <= expected, task
        if len(expected) < 250:  # each comes at least twelve times on average
            assert sum(drawn[task].values()) >= 12 * len(expected)
            assert set(drawn[task]) == expected, task
        else:
            assert len(drawn[task]) > 500


def test_every_seen_task_has_captions_in_every_setting() -> None:
    data = data_of("scenes_cpu")
    for shapes, colors, share in itertools.product(range(2, 9, 2), (2, 3, 5), (0.0, 0.1, 0.25, 0.5)):
        setting = dataclasses.replace(data, shapes=shapes, colors=colors, held_out=share)
        for task in TASKS:
            assert prompts.captions_of(setting, task, "seen"), (shapes, colors, share, task)


# --- scenes' own prompts --------------------------------------------------------------------------------------------


def by_group(wanted):
    found = collections.defaultdict(list)
    for prompt in wanted:
        found[prompt.metadata["tag"], prompt.metadata["split"]].append(prompt)
    return found


@settings
@pytest.mark.parametrize("images", [1, 2, 3, 4, 5, 16, 50, 101, 400])
def test_every_group_has_as_many_pictures_of_a_quarter_as_many_prompts(name, images) -> None:
    data = data_of(name)
    wanted = prompts.scene_prompts(data, images)
    texts = [prompt.text for prompt in wanted]
    assert len(texts) == len(set(texts))
    groups = by_group(wanted)
    assert tuple(groups) == GROUPS  # in this order
    for (task, split), group in groups.items():
        there = sum(
            any(is_new(fact, data) for fact in facts) == (split == "unseen") for _, facts in all_captions(name)[task]
        )
        number = [prompt.images for prompt in group]
        assert sum(number) == images
        assert len(group) == min(max(images // 4, 1), there)
        assert max(number) - min(number) <= 1
        assert min(number) >= 1


@settings
def test_unseen_prompts_state_something_new_and_seen_ones_nothing(name) -> None:
    data = data_of(name)
    facts = {text: stated for rows in all_captions(name).values() for text, stated in rows}
    groups = by_group(prompts.scene_prompts(data, 400))
    assert {task for task, split in groups if split == "unseen"} == {"colors", "position", "color_attr"}
    for (_, split), group in groups.items():
        for prompt in group:
            new = [bool(is_new(fact, data)) for fact in facts[prompt.text]]
            assert any(new) == (split == "unseen")
            assert list(prompt.metadata)[-1] == "split"  # after GenEval's own keys
            assert {k: v for k, v in prompt.metadata.items() if k != "split"} == prompts.metadata(prompt.words)
            np.testing.assert_array_equal(captions.parse(prompt.text), prompt.words)


@settings
def test_a_seed_is_a_list(name) -> None:
    data = data_of(name)
    one, again, other = (prompts.scene_prompts(data, 40, seed) for seed in (0, 0, 1))
    assert [(p.text, p.images, p.metadata) for p in one] == [(p.text, p.images, p.metadata) for p in again]
    assert [p.text for p in prompts.scene_prompts(data, 40)] == [p.text for p in one]
    for (task, split), group in by_group(one).items():
        theirs = by_group(other)[task, split]
        assert len(group) == len(theirs)
        there = len(prompts.captions_of(data, task, split))
        if there > 10:  # ten are chosen: another ten, in another order
            assert {p.text for p in group} != {p.text for p in theirs}, task
        else:
            assert {p.text for p in group} == {p.text for p in theirs}, task
    assert prompts.fingerprint(one) == prompts.fingerprint(again) != prompts.fingerprint(other)


def test_prompts_are_drawn_evenly_among_all_captions() -> None:
    data = dataclasses.replace(data_of("scenes_cpu"), shapes=3, colors=3)
    seeds, wanted = 400, 2
    came = collections.Counter(p.text for seed in range(seeds) for p in prompts.scene_prompts(data, 4 * wanted, seed))
    for task, split in GROUPS:
        names = [captions.sentence(words) for words in prompts.captions_of(data, task, split)]
        chance = min(wanted / len(names), 1)
        deviation = np.sqrt(seeds * chance * (1 - chance))
        assert max(abs(came[text] - seeds * chance) for text in names) <= 4 * deviation, task


@settings
def test_without_anything_held_out_there_are_no_unseen_prompts(name) -> None:
    data = dataclasses.replace(data_of(name), held_out=0.0)
    groups = by_group(prompts.scene_prompts(data, 40))
    assert tuple(groups) == tuple((task, "seen") for task in TASKS)
    for task in TASKS:
        assert prompts.captions_of(data, task, "unseen") == []
        assert len(prompts.captions_of(data, task, "seen")) == len(all_captions(name)[task])


@pytest.mark.parametrize("images", [0, -3])
def test_no_pictures_are_refused(images) -> None:
    with pytest.raises(UserError, match=f"images per task: {images} "):
        prompts.scene_prompts(data_of("scenes_cpu"), images)


# --- files ----------------------------------------------------------------------------------------------------------

CPU = data_of("scenes_cpu")  # four shapes: square, ring, triangle, cross
LINES = ["a photo of a red ring", "a photo of two crosses", "a photo of a ring left of a cross"]


def test_a_text_file_has_a_caption_a_line(tmp_path) -> None:
    path = tmp_path / "wanted.txt"
    path.write_text(f"\n{LINES[0]}\n\n  {LINES[1]}  \r\n{LINES[2]}", encoding="utf-8")
    found = prompts.read_prompts(path, CPU)
    assert [prompt.text for prompt in found] == LINES
    assert [prompt.images for prompt in found] == [4, 4, 4]
    for prompt in found:
        split = "unseen" if any(is_new(fact, CPU) for fact in stated(prompt.text)) else "seen"
        assert prompt.metadata == prompts.metadata(captions.parse(prompt.text)) | {"split": split}
    assert [prompt.images for prompt in prompts.read_prompts(path, CPU, 7)] == [7, 7, 7]


def stated(text):
    return next(facts for rows in all_captions("scenes_cpu").values() for line, facts in rows if line == text)


def test_a_table_is_read_as_partiprompts_is(tmp_path) -> None:
    path = tmp_path / "PartiPrompts.tsv"
    lines = [
        "Prompt\tCategory\tChallenge\tNote",
        "bond\tAbstract\tBasic\tBiology-inspired",
        'A sign that says "STOP", not ""go""\tOutdoor Scenes\tWriting & Symbols\t',
        "bond\tAbstract\tComplex\t",
        "a cat\tAnimals",
    ]
    path.write_bytes("\r\n".join(lines).encode())
    found = prompts.read_texts(path, images=1)
    assert [prompt.text for prompt in found] == ["bond", 'A sign that says "STOP", not ""go""', "a cat"]
    assert found[1].metadata["challenge"] == "Writing & Symbols"
    assert [prompt.metadata["category"] for prompt in found] == ["Abstract", "Outdoor Scenes", "Animals"]


@pytest.mark.parametrize(
    ("text", "said"),
    [("Text\tCategory\na cat\tx\n", ":1: names no column 'Prompt'"), ("Prompt\tNote\n\tx\n", ":2: has no prompt")],
)
def test_a_table_without_prompts_is_one_clear_line(text, said, tmp_path) -> None:
    path = tmp_path / "table.tsv"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        prompts.read_texts(path)


def test_a_json_file_has_an_object_a_line_as_genevals(tmp_path) -> None:
    path = tmp_path / "wanted.jsonl"
    rows = [prompts.metadata(captions.parse(line)) for line in LINES]
    rows[1] = {"prompt": LINES[1]}  # the caption is enough
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    found = prompts.read_prompts(path, CPU, 2)
    text = tmp_path / "wanted.txt"
    text.write_text("\n".join(LINES), encoding="utf-8")
    assert [(p.metadata, p.images) for p in found] == [
        (p.metadata, p.images) for p in prompts.read_prompts(text, CPU, 2)
    ]


def test_the_caption_alone_says_what_is_asked(tmp_path) -> None:
    path = tmp_path / "wanted.jsonl"
    path.write_text(json.dumps({"tag": "counting", "include": [], "prompt": LINES[0]}), encoding="utf-8")
    (found,) = prompts.read_prompts(path, CPU)
    assert found.metadata["tag"] == "colors"
    assert found.metadata["include"] == [{"class": "ring", "count": 1, "color": "red"}]


def test_our_own_prompts_can_be_written_and_read(tmp_path) -> None:
    for name, suffix in itertools.product(SETTINGS, ("txt", "jsonl")):
        data = data_of(name)
        wanted = prompts.scene_prompts(data, 24)
        path = tmp_path / f"{name}.{suffix}"
        lines = [p.text if suffix == "txt" else json.dumps(p.metadata) for p in wanted]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        assert [p.metadata for p in prompts.read_prompts(path, data)] == [p.metadata for p in wanted]


GOOD = "a photo of a red ring"
BROKEN = {
    # name: (file, what it holds, line or None, what the message says)
    "twice": ("p.txt", f"{GOOD}\n\na photo of a cross\n{GOOD}\n", 4, "line 1 again"),
    "twice, said otherwise": ("p.txt", f"{GOOD}\na red ring.\n", 2, "line 1 again"),
    "twice, in JSON": ("p.jsonl", f'{{"prompt": "{GOOD}"}}\n{{"prompt": "{GOOD}"}}\n', 2, "line 1 again"),
    "no shape at all": (
        "p.txt",
        f"{GOOD}\na photo of a red hexagon\n",
        2,
        "'a photo of a red hexagon' is not a caption",
    ),
    "no colour at all": ("p.txt", "a photo of a mauve ring\n", 1, "'a photo of a mauve ring' is not a caption"),
    "GenEval's": ("p.jsonl", '{"tag": "colors", "prompt": "a photo of a red bench"}', 1, "is not a caption"),
    "a shape of other scenes": (
        "p.txt",
        f"{GOOD}\na photo of a heart\n",
        2,
        "the shape 'heart' is not in these scenes",
    ),
    "a second shape of other scenes": ("p.txt", "a photo of a ring and a star\n", 1, "the shape 'star' is not in"),
    "many shapes of other scenes": ("p.txt", "a photo of two circles\n", 1, "the shape 'circle' is not in these"),
    "broken JSON": ("p.jsonl", f'{{"prompt": "{GOOD}"}}\n{{"prompt": \n', 2, "is not JSON"),
    "text in place of JSON": ("p.jsonl", f"{GOOD}\n", 1, "is not JSON"),
    "a list": ("p.jsonl", f'["{GOOD}"]\n', 1, "has no 'prompt'"),
    "a string": ("p.jsonl", f'"{GOOD}"\n', 1, "has no 'prompt'"),
    "no prompt": ("p.jsonl", '{"tag": "colors"}\n', 1, "has no 'prompt'"),
    "a prompt that is no text": ("p.jsonl", '{"prompt": 7}\n', 1, "has no 'prompt'"),
    "an empty prompt": ("p.jsonl", '{"prompt": ""}\n', 1, "'' is not a caption"),
    "JSON in a text file": ("p.txt", f'{{"prompt": "{GOOD}"}}\n', 1, "is not a caption"),
    "nothing": ("p.txt", "", None, "holds no prompt"),
    "empty lines": ("p.txt", "\n  \n\t\n", None, "holds no prompt"),
    "nothing, in JSON": ("p.jsonl", "\n", None, "holds no prompt"),
    "bytes": ("p.txt", b"a photo of a red ring\n\xff\xfe\n", None, "is not UTF-8 text"),
    "bytes in JSON": ("p.jsonl", b'{"prompt": "\x80"}\n', None, "is not UTF-8 text"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_clear_line(name, tmp_path) -> None:
    file, text, line, said = BROKEN[name]
    path = tmp_path / file
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as error:
        prompts.read_prompts(path, CPU)
    message = str(error.value)
    assert message.startswith(f"{path}:{line}: " if line else f"{path}: ")
    assert message.count(str(path)) == 1
    assert said in message
    assert "\n" not in message


def test_a_colour_of_other_scenes_is_refused(tmp_path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("a photo of a red ring\na photo of a green ring and a blue cross\n", encoding="utf-8")
    few = dataclasses.replace(CPU, colors=3)
    with pytest.raises(
        UserError, match=r"p\.txt:2: the colour 'blue' is not in these scenes; there are red, orange, y"
    ):
        prompts.read_prompts(path, few)
    path.write_text("a photo of a yellow ring and a red cross\n", encoding="utf-8")
    assert len(prompts.read_prompts(path, few)) == 1


# --- fingerprints ---------------------------------------------------------------------------------------------------


def test_the_fingerprint_changes_with_prompts_their_order_and_their_numbers() -> None:
    wanted = prompts.scene_prompts(CPU, 16)
    other = next(p for p in prompts.scene_prompts(CPU, 400) if p.text not in {q.text for q in wanted})
    lists = [
        wanted,
        wanted[1:],
        wanted[::-1],
        [*wanted, other],
        [other, *wanted[1:]],
        [wanted[0]._replace(images=wanted[0].images + 1), *wanted[1:]],
        [wanted[0]._replace(metadata=wanted[0].metadata | {"split": "unseen"}), *wanted[1:]],
        [],
    ]
    found = [prompts.fingerprint(one) for one in lists]
    assert len(set(found)) == len(lists)
    assert all(len(digits) == 8 and int(digits, 16) >= 0 for digits in found)
    assert prompts.fingerprint(iter(wanted)) == found[0]
    turned = [p._replace(metadata=dict(reversed(p.metadata.items()))) for p in wanted]
    assert prompts.fingerprint(turned) == found[0]  # not with the order of keys


@pytest.mark.parametrize(
    "line",
    ["[" * 100_000, '{"prompt": ' + "1" * 5000 + "}", '{"prompt": "half a letter \\ud800"}'],
    ids=["nested too deeply", "a number of too many digits", "a lone surrogate"],
)
def test_json_that_python_cannot_read_is_one_clear_line(line, tmp_path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(f'{{"prompt": "{GOOD}"}}\n{line}\n', encoding="utf-8")
    with pytest.raises(UserError) as error:
        prompts.read_texts(path)
    assert str(error.value).startswith(f"{path}:2: ")
    assert "\n" not in str(error.value)
    str(error.value).encode()


def test_a_line_of_json_ends_at_a_newline_alone(tmp_path) -> None:
    path = tmp_path / "p.jsonl"
    row = json.dumps({"note": "a line\u2028separator, \x85 too", "prompt": GOOD}, ensure_ascii=False)
    path.write_text(row + "\n", encoding="utf-8")  # valid JSON in one line; str.splitlines cuts it into three
    assert [prompt.text for prompt in prompts.read_prompts(path, CPU)] == [GOOD]
