"""Captions of scenes: six words for the model, a sentence for the reader, and frozen embeddings of the words."""

import functools
import re

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sd3_jax.config import ModelConfig
from sd3_jax.data.composition import COLORS, RELATIONS, SHAPES, SIGN, TASKS, Scene
from sd3_jax.data.signs import LETTERS, LONGEST
from sd3_jax.errors import UserError

NAMES = ("", "a", "two", "three", "four", "and", *RELATIONS, *COLORS, *SHAPES)  # 0 is padding
VOCABULARY = (*NAMES, "sign", *LETTERS)
COUNTS = {"a": 1, "two": 2, "three": 3, "four": 4}
# Count or article, colour, shape, relation or "and", other colour, other shape; or "sign" and its letters: the text
# encoder says how a word is spelt, as T5 does and CLIP hardly, so that a word never seen can be written.
SLOTS = 6
_STATE_DIM = 64  # of word and position vectors inside an encoder


def caption_words(scene: Scene) -> Int[Array, "6"]:
    """What the caption says, as indices in VOCABULARY by slot; 0 where it says nothing."""
    task = scene.task
    two = (task == _TWO) | (task == _POSITION) | (task == _COLOR_ATTR)
    colored = (task == _COLORS) | (task == _COLOR_ATTR)
    count = jnp.sum(scene.present)
    letters = jnp.where(scene.letters >= 0, _LETTER + scene.letters, 0)
    spelt = jnp.stack([_SIGN, *letters, *[0] * (SLOTS - 1 - LONGEST)])
    said = jnp.stack(
        [
            jnp.where(task == _COUNTING, _A - 1 + count, _A),
            jnp.where(colored, _COLOR + scene.color[0], 0),
            _SHAPE + scene.shape[0],
            jnp.where(task == _POSITION, _RELATION + scene.relation, jnp.where(two, _AND, 0)),
            jnp.where(colored & two, _COLOR + scene.color[1], 0),
            jnp.where(two, _SHAPE + scene.shape[1], 0),
        ]
    )
    return jnp.where(task == SIGN, spelt, said)


def caption(scene: Scene) -> str:
    """The caption in GenEval's words, "a photo of a red circle and a blue star".

    Read off the scene's six words, so that text and embedding cannot disagree.
    """
    return sentence(np.asarray(caption_words(scene)))


def sentence(words: np.ndarray) -> str:
    """Six words as the sentence that they stand for.

    >>> sentence(np.array([VOCABULARY.index(w) for w in ("a", "", "circle", "left of", "", "star")]))
    'a photo of a circle left of a star'
    """
    if word := spelt(words):
        return f'a photo of a sign that says "{word}"'
    count, color, shape, joint, other_color, other = (VOCABULARY[word] for word in words)
    phrase = _noun(color, shape) if count == "a" else f"{count} {_plural(shape)}"
    return f"a photo of {phrase}" + (f" {joint} {_noun(other_color, other)}" if other else "")


def spelt(words: Int[np.ndarray, "6"]) -> str:
    """The word that a caption wants on a sign; empty if it wants none.

    >>> spelt(parse('a photo of a sign that says "GO"'))
    'GO'
    """
    return "".join(VOCABULARY[letter] for letter in words[1:]) if words[0] == _SIGN else ""


def parse(text: str) -> Int[np.ndarray, "6"]:
    """The six words of a sentence: the inverse of :func:`sentence`.

    >>> sentence(parse("a photo of two crosses"))
    'a photo of two crosses'

    Raises UserError for a sentence that is not of this form.
    """
    sign = re.fullmatch(rf"(?:a photo of )?a sign that says [\"“]([{LETTERS}]{{1,{LONGEST}}})[\"”]\.?", text.strip())
    noun = rf"(?:({'|'.join(COLORS)}) )?({'|'.join(SHAPES)})"
    one = re.fullmatch(rf"(?:a photo of )?an? {noun}(?: ({'|'.join(RELATIONS)}|and) an? {noun})?\.?", text.strip())
    many = re.fullmatch(rf"(?:a photo of )?(two|three|four) ({'|'.join(map(_plural, SHAPES))})\.?", text.strip())
    if one:
        color, shape, joint, other_color, other = (word or "" for word in one.groups())
        known = joint in ("", "and") if color or other_color else True  # relations are between shapes alone
        one = one if known and (joint != "and" or bool(color) == bool(other_color)) and shape != other else None
        words: tuple[str, ...] = ("a", color, shape, joint, other_color, other)
    elif many:
        shape = next(shape for shape in SHAPES if _plural(shape) == many[2])
        words = (many[1], "", shape, "", "", "")
    elif sign:
        words = ("sign", *sign[1], *[""] * (SLOTS - 1 - len(sign[1])))
    if not (one or many or sign):
        raise UserError(
            f"{text!r} is not a caption of scenes, such as 'a photo of a red square and a blue ring', "
            "'a photo of a ring left of a square', 'a photo of three squares' or "
            "'a photo of a sign that says \"CAT\"', of up to four capitals"
        )
    return np.array([VOCABULARY.index(word) for word in words])


def _plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def _noun(color: str, shape: str) -> str:
    phrase = f"{color} {shape}".strip()
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def embed_captions(
    words: Int[Array, "b 6"], dropped: Bool[Array, "b parts"], model: ModelConfig, parts: int, sequence: bool = False
) -> tuple[Float[Array, "b m text_dim"], Float[Array, "b pooled_dim"]]:
    """Frozen token states and pooled states of captions; a dropped part's channels are zero.

    The channels are cut into ``parts`` nearly equal slices (as by ``numpy.array_split``), each the output of one
    encoder of fixed random weights. With ``sequence`` the last part is T5's (paper section 4): its tokens follow the
    ``clip_tokens`` that the others share, and nothing of it is pooled. A token's state is ``sin(R (w + p))`` of its
    word's and its slot's vectors, so it tells both (MM-DiT gives text no positions); the pooled state is a random
    projection of all six (slot, word) pairs. Both have variance one, nearly. Padding has states too, and nothing is
    masked.
    """
    every = tuple(range(parts))
    pooling = every[:-1] if sequence else every
    runs = [(model.text_tokens, every)]
    if sequence:
        runs = [(model.clip_tokens, pooling), (model.text_tokens - model.clip_tokens, every[-1:])]
    tokens = [_token_states(words, count, model.text_dim, encoders) for count, encoders in runs]
    tokens = [x * _kept(dropped, x.shape[-1], run[1])[:, None] for x, run in zip(tokens, runs, strict=True)]
    pooled = jnp.asarray(_pooled_states(model.pooled_dim, pooling))[jnp.arange(SLOTS), words].sum(1)
    return jnp.concatenate(tokens, axis=1), pooled * _kept(dropped, model.pooled_dim, pooling)


def unconditional(model: ModelConfig, b: int) -> tuple[Float[Array, "b m text_dim"], Float[Array, "b pooled_dim"]]:
    """The embedding of no caption: all parts dropped."""
    return jnp.zeros((b, model.text_tokens, model.text_dim)), jnp.zeros((b, model.pooled_dim))


_TWO, _COUNTING, _COLORS, _POSITION, _COLOR_ATTR = range(1, len(TASKS))
_A, _AND, _RELATION, _COLOR, _SHAPE = map(VOCABULARY.index, ("a", "and", RELATIONS[0], COLORS[0], SHAPES[0]))
_SIGN, _LETTER = map(VOCABULARY.index, ("sign", LETTERS[0]))
_SPELLING = len(VOCABULARY) - len(NAMES)


def _token_states(
    words: Int[Array, "b 6"], count: int, text_dim: int, encoders: tuple[int, ...]
) -> Float[Array, "b count text_dim"]:
    """The states of a caption's words and of padding up to ``count`` tokens, the encoders side by side."""
    states = jnp.asarray(_word_states(text_dim, encoders))[jnp.arange(SLOTS), words]
    padding = jnp.asarray(_padding_states(count, text_dim, encoders))
    return jnp.concatenate([states, jnp.broadcast_to(padding, (len(words), *padding.shape))], axis=1)


def _kept(dropped: Bool[Array, "b parts"], channels: int, encoders: tuple[int, ...]) -> Float[Array, "b channels"]:
    return (1.0 - dropped)[:, np.array(encoders)[_part_of(channels, len(encoders))]]


def _part_of(channels: int, parts: int) -> np.ndarray:
    """The part that each channel belongs to.

    >>> _part_of(7, 3)
    array([0, 0, 0, 1, 1, 2, 2])
    """
    return np.repeat(np.arange(parts), [len(piece) for piece in np.array_split(np.arange(channels), parts)])


@functools.lru_cache
def _word_states(text_dim: int, encoders: tuple[int, ...]) -> np.ndarray:
    """The state of every word in every slot, [6, words, text_dim]."""
    return _states(np.arange(len(VOCABULARY)), np.arange(SLOTS)[:, None], text_dim, encoders)


@functools.lru_cache
def _padding_states(text_tokens: int, text_dim: int, encoders: tuple[int, ...]) -> np.ndarray:
    """The states of the slots past the caption's, [text_tokens - 6, text_dim]."""
    return _states(np.array(0), np.arange(SLOTS, text_tokens), text_dim, encoders)


def _states(words: np.ndarray, slots: np.ndarray, text_dim: int, encoders: tuple[int, ...]) -> np.ndarray:
    columns = []
    for encoder, piece in zip(encoders, np.array_split(np.arange(text_dim), len(encoders)), strict=True):
        weights = _encoder(encoder, "tokens")
        word_vectors = weights.standard_normal((len(NAMES), _STATE_DIM))
        mixing = weights.standard_normal((_STATE_DIM, len(piece))) / np.sqrt(2 * _STATE_DIM)
        slot_vectors = weights.standard_normal((max(SLOTS, slots.max(initial=0) + 1), _STATE_DIM))
        spelling = _encoder(encoder, "tokens of signs").standard_normal((_SPELLING, _STATE_DIM))
        word_vectors = np.concatenate([word_vectors, spelling])
        columns.append(np.sin((word_vectors[words] + slot_vectors[slots]) @ mixing))
    # The mixed vectors have variance 1 each, and the sine of such a Gaussian has variance (1 - exp(-2)) / 2.
    return (np.concatenate(columns, axis=-1) / np.sqrt((1 - np.exp(-2)) / 2)).astype(np.float32)


@functools.lru_cache
def _pooled_states(pooled_dim: int, encoders: tuple[int, ...]) -> np.ndarray:
    """What each word in each slot adds to the pooled state, [6, words, pooled_dim]."""
    pieces = np.array_split(np.arange(pooled_dim), len(encoders))
    tables = [
        np.concatenate(
            [
                _encoder(encoder, output).standard_normal((SLOTS, count, len(piece)))
                for encoder, piece in zip(encoders, pieces, strict=True)
            ],
            axis=-1,
        )
        for output, count in (("pooled", len(NAMES)), ("pooled of signs", _SPELLING))
    ]
    return (np.concatenate(tables, axis=1) / np.sqrt(SLOTS)).astype(np.float32)


def _encoder(part: int, output: str) -> np.random.RandomState:
    """The source of one encoder's weights, the same in every run: the stream that NumPy never changes (NEP 19)."""
    return np.random.RandomState([part, ("tokens", "pooled", "tokens of signs", "pooled of signs").index(output)])
