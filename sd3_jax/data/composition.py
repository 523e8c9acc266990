"""What is in a scene, and where: GenEval's six tasks, signs, two layouts, and the split into seen and unseen.

A scene is drawn from one key, without rejection: every object lies inside the canvas, bounding boxes of two
objects never touch, and a ``position`` scene satisfies its relation and no other by GenEval's formula. Some
(shape, colour) pairs are never shown in training and some statements "a is left of b" are never made.
"""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from sd3_jax.config import DataConfig
from sd3_jax.data import signs
from sd3_jax.errors import UserError

# A setting uses the first few of each; the first four shapes are those that differ most at a diameter of 7 pixels.
SHAPES = ("square", "ring", "triangle", "cross", "circle", "star", "heart", "diamond")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
BACKGROUNDS = ("grey", "mauve", "sage", "slate")
RELATIONS = ("left of", "right of", "above", "below")  # an odd one is the converse of the one before it
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
SIGN = len(TASKS)  # the number of the task that is there with data.words alone
MAX_OBJECTS = 4

_COUNTING, _COLORS, _POSITION, _COLOR_ATTR = range(2, 6)
_TASKS_OF = {"seen": tuple(range(len(TASKS))), "unseen": (_COLORS, _POSITION, _COLOR_ATTR)}
Split = Literal["seen", "unseen"]
Size = signs.Size

# sRGB, 0 to 255; every channel leaves room for the default jitter of 12.
COLOR_RGB = np.array(
    [
        (215, 25, 30),
        (240, 130, 15),
        (243, 222, 35),
        (30, 150, 50),
        (20, 80, 225),
        (145, 38, 155),
        (243, 140, 190),
        (110, 62, 28),
        (14, 14, 14),
        (243, 243, 243),
    ]
)
BACKGROUND_RGB = np.array([(125, 125, 125), (135, 118, 145), (95, 128, 120), (100, 118, 148)])

GRID_RADIUS = 0.44  # of a cell: 7 of 8 pixels across
FREE_RADIUS = (0.11, 0.17)  # of the canvas's shorter side
# Perpendicular over axial offset in a free position scene. Below tan(30 degrees) = 0.577 the other relation's
# component stays under GenEval's threshold of one half, whatever the sizes.
_SLOPE = 0.55
_WHAT, _WHERE = 9, 17  # uniform numbers that a scene and a free layout take


class Scene(NamedTuple):
    """The ground truth of one picture: what captions say, what the renderer draws, what a judge must find.

    Objects fill the slots from the first on. Lengths are in units of the canvas side, x to the right and y down.
    """

    task: Int[Array, ""]  # index in TASKS, or SIGN: then no object is present, and the plate is slot 0
    relation: Int[Array, ""]  # of slot 0 to slot 1, index in RELATIONS; -1 in all tasks but position
    background: Int[Array, ""]
    present: Bool[Array, "4"]
    shape: Int[Array, "4"]
    color: Int[Array, "4"]
    rgb: Float[Array, "4 3"]  # in [0, 1], with jitter
    center: Float[Array, "4 2"]  # of the bounding box; lengths are in units of the canvas's shorter side
    radius: Float[Array, "4"]  # half the side of the square that the shape is inscribed in
    letters: Int[Array, "4"]  # on the sign, as signs.spell has them; all -1 in all tasks but that


def draw(
    key: Key[Array, ""], data: DataConfig, split: Split = "seen", task: int | None = None, size: Size | None = None
) -> Scene:
    """One scene: a task (uniform, or the one given), what it is about, where things are, and their exact colours.

    ``seen`` is the training distribution. ``unseen`` draws only ``colors``, ``position`` and ``color_attr``
    scenes, each with a held-out pair or statement in its caption. Objects of a ``counting`` scene share one
    colour; colours that no caption mentions are uniform over those that their shape is seen in. ``size``: of the
    canvas, for layout free; the square of ``image_size`` unless given.

    Raises UserError if ``unseen`` is asked for where nothing is held out, or for a task that names nothing.
    """
    words = np.flatnonzero(signs.held_out_words(data.words, data.held_out) == (split == "unseen"))
    possible = _TASKS_OF[split] + ((SIGN,) if len(words) else ())
    tasks = possible if task is None else (task,)
    if SIGN in tasks and SIGN not in possible:
        raise UserError(f"task sign has no {split} scenes: data.words {data.words} leaves no word for them")
    if not set(tasks) <= set(possible):
        raise UserError(f"task {TASKS[tasks[0]]} has no unseen scenes: its captions name no pair and no relation")
    facts = jax.tree.map(jnp.asarray, _facts(data.shapes, data.colors, data.held_out, split))
    # All numbers at once: each call of a random function costs half a second of compilation on a CPU.
    uniform = jax.random.uniform(key, (_WHAT + 3 * MAX_OBJECTS + max(_WHERE, data.grid**2 + 1),))
    u, jitter, where = jnp.split(uniform, (_WHAT, _WHAT + 3 * MAX_OBJECTS))

    kind = jnp.asarray(tasks)[_pick(u[0], len(tasks))]
    relation, target, reference = facts.statements[_pick(u[1], len(facts.statements))]
    first, second = _pick(u[1], data.shapes), _pick(u[2], data.shapes - 1)
    second = (first + 1 + second) % data.shapes
    first, second = jnp.where(kind == _POSITION, jnp.stack([target, reference]), jnp.stack([first, second]))
    shape = jnp.stack([first, jnp.where(kind == _COUNTING, first, second), first, first])
    color = facts.colors_of[shape, _pick(u[3:7], facts.colors_count[shape])]
    color = jnp.where(kind == _COUNTING, color[0], color)
    for named, rows in ((_COLORS, facts.colors), (_COLOR_ATTR, facts.color_attr)):
        row = rows[_pick(u[1], len(rows))].reshape(2, -1)
        shape = jnp.where(kind == named, shape.at[: row.shape[1]].set(row[0]), shape)
        color = jnp.where(kind == named, color.at[: row.shape[1]].set(row[1]), color)

    letters = jnp.full(signs.LONGEST, -1)
    if SIGN in tasks:
        spelt = jnp.asarray([signs.spell(signs.WORDS[word]) for word in words])
        letters = jnp.where(kind == SIGN, spelt[_pick(u[1], len(words))], letters)
        color = color.at[0].set(jnp.where(kind == SIGN, _pick(u[2], data.colors), color[0]))
    count = jnp.asarray([1, 2, 0, 1, 2, 2, 0])[kind] + (kind == _COUNTING) * (2 + _pick(u[7], MAX_OBJECTS - 1))
    present = jnp.arange(MAX_OBJECTS) < count
    relation = jnp.where(kind == _POSITION, relation, -1)
    background = _pick(u[8], data.backgrounds)
    scene = _placed(kind, relation, background, present, shape, color, jitter, where, data, size)
    if SIGN in tasks:
        middle = signs.place(where[:2], size or (data.image_size, data.image_size), data.layout == "grid")
        scene = scene._replace(center=jnp.where(kind == SIGN, middle, scene.center))
    return scene._replace(letters=letters)


def draw_of(
    key: Key[Array, ""],
    data: DataConfig,
    task: Int[Array, ""],
    relation: Int[Array, ""],
    count: Int[Array, ""],
    shape: Int[Array, "2"],
    color: Int[Array, "2"],
) -> Scene:
    """One scene that a caption describes, distributed as those of :func:`draw` that have this caption.

    ``relation`` is -1 where none is said, ``color`` -1 where it is not: then it is drawn as :func:`draw` draws it.
    Captions that nothing is drawn with in either split, such as of two objects of one colour, are as good as others.
    """
    facts = jax.tree.map(jnp.asarray, _facts(data.shapes, data.colors, data.held_out, "seen"))
    uniform = jax.random.uniform(key, (1 + MAX_OBJECTS + 3 * MAX_OBJECTS + max(_WHERE, data.grid**2 + 1),))
    u, jitter, where = jnp.split(uniform, (1 + MAX_OBJECTS, 1 + 4 * MAX_OBJECTS))
    shape = jnp.stack([shape[0], jnp.where(task == _COUNTING, shape[0], shape[1]), shape[0], shape[0]])
    any_color = facts.colors_of[shape, _pick(u[1:], facts.colors_count[shape])]
    any_color = jnp.where(task == _COUNTING, any_color[0], any_color)
    color = any_color.at[:2].set(jnp.where(color >= 0, color, any_color[:2]))
    present = jnp.arange(MAX_OBJECTS) < count
    return _placed(task, relation, _pick(u[0], data.backgrounds), present, shape, color, jitter, where, data)


def _placed(
    task: Int[Array, ""],
    relation: Int[Array, ""],
    background: Int[Array, ""],
    present: Bool[Array, "4"],
    shape: Int[Array, "4"],
    color: Int[Array, "4"],
    jitter: Float[Array, "_"],
    where: Float[Array, "_"],
    data: DataConfig,
    size: Size | None = None,
) -> Scene:
    """The scene of these objects, from the uniform numbers of their exact colours and places."""
    if data.layout == "grid":
        center, radius = _grid_layout(where, relation, present, data)
    else:
        center, radius = _free_layout(where, relation, present, size or (data.image_size, data.image_size))
    jitter = data.color_jitter * (2 * jitter.reshape(MAX_OBJECTS, 3) - 1)
    rgb = jnp.clip((jnp.asarray(COLOR_RGB, jnp.float32)[color] + jitter) / 255, 0, 1)
    no_letters = jnp.full(signs.LONGEST, -1)
    return Scene(task, relation, background, present, shape, color, rgb, center, radius, no_letters)


def _grid_layout(
    u: Float[Array, "_"], relation: Int[Array, ""], present: Bool[Array, "4"], data: DataConfig
) -> tuple[Float[Array, "4 2"], Float[Array, "4"]]:
    """Centres and radii of objects in the middle of different cells; related ones share a row or column, nearly."""
    _, cells = jax.lax.top_k(u[: data.grid**2], MAX_OBJECTS)
    related = jnp.asarray(_related_cells(data.grid))
    pair = related[relation, _pick(u[data.grid**2], related.shape[1])]
    cells = jnp.where(relation >= 0, cells.at[:2].set(pair), cells)
    center = (jnp.stack([cells % data.grid, cells // data.grid], axis=-1) + 0.5) / data.grid
    return center, jnp.full(MAX_OBJECTS, GRID_RADIUS / data.grid)


@functools.lru_cache
def _related_cells(grid: int) -> np.ndarray:
    """Pairs of cells between which one relation holds, and only it, whatever the shapes: [4, n, 2]."""
    cells = np.arange(grid**2)
    pairs = np.stack(np.meshgrid(cells, cells, indexing="ij"), axis=-1).reshape(-1, 2)
    offset = np.stack([pairs[:, 0] % grid - pairs[:, 1] % grid, pairs[:, 0] // grid - pairs[:, 1] // grid], axis=-1)
    distance = np.maximum(np.linalg.norm(offset, axis=-1), 1)
    least = (np.abs(offset) - 0.1 * 4 * GRID_RADIUS) / distance[:, None]  # GenEval's component, largest boxes
    most = np.abs(offset) / distance[:, None]  # the same for boxes of no size
    tables = []
    for axis in (0, 1):
        only = (least[:, axis] > 0.5) & (most[:, 1 - axis] <= 0.5)
        tables += [pairs[only & (offset[:, axis] < 0)], pairs[only & (offset[:, axis] > 0)]]
    return np.stack(tables)


def _free_layout(
    u: Float[Array, "_"], relation: Int[Array, ""], present: Bool[Array, "4"], size: Size
) -> tuple[Float[Array, "4 2"], Float[Array, "4"]]:
    """Centres and radii of objects anywhere, apart by construction.

    Objects stand in columns (:func:`_columns`) or, the canvas turned, in rows; then it is mirrored. All at random, or
    as the relation demands.
    """
    low, high = FREE_RADIUS
    radius = low + (high - low) * u[:4]
    turned = jnp.where(relation >= 0, relation < 2, u[14] < 0.5)
    backwards = jnp.where(relation >= 0, relation % 2 == 1, u[15] < 0.5)

    def columns(height: int, width: int) -> tuple[Float[Array, "4"], Float[Array, "4"]]:
        across, down = _columns(u, radius, relation, present, height, width)
        down = jnp.where(backwards, height / min(size) - down, down)
        return jnp.where(u[16] < 0.5, width / min(size) - across, across), down

    height, width = size
    across, down = columns(height, width)
    turned_across, turned_down = columns(width, height)
    turned_center = jnp.stack([turned_down, turned_across], axis=1)
    return jnp.where(turned, turned_center, jnp.stack([across, down], axis=1)), radius


def _columns(
    u: Float[Array, "_"],
    radius: Float[Array, "4"],
    relation: Int[Array, ""],
    present: Bool[Array, "4"],
    height: int,
    width: int,
) -> tuple[Float[Array, "4"], Float[Array, "4"]]:
    """Where objects are across and down a canvas of ``height`` x ``width`` pixels.

    Slots 0 and 1 share a column, 2 and 3 the next; each object is uniform across its column and pairs are uniform
    among the arrangements that keep them apart; slot 1 of a relation is nearly under slot 0.
    """
    shorter = min(height, width)
    wide, tall = width / shorter, height / shorter
    margin, gap = 1.5 / shorter, max(0.03, 2.5 / shorter)  # a pixel stays clear at soft edges
    room = jnp.where(present, 2 * radius, 0)

    # Columns: a strip for each pair, as wide as its widest object, and what is left over shared at random.
    strip = jnp.maximum(room[0::2], room[1::2])
    two = present[2]
    cut = jnp.where(two, u[4] * (wide - 2 * margin - gap - strip.sum()), wide - 2 * margin - strip[0])
    start = jnp.stack([margin, margin + strip[0] + cut + gap])
    stop = jnp.stack([margin + strip[0] + cut, wide - margin])
    left, right = jnp.repeat(start, 2) + radius, jnp.repeat(stop, 2) - radius

    # Down each column: order statistics of the slack are uniform over the arrangements that do not touch.
    both = present[1::2]
    slack = tall - 2 * margin - room[0::2] - room[1::2] - gap * both
    early, late = jnp.minimum(u[5:7], u[7:9]), jnp.maximum(u[5:7], u[7:9])
    upper = margin + radius[0::2] + slack * jnp.where(both, early, u[5:7])
    lower = margin + room[0::2] + gap + radius[1::2] + slack * late
    down = jnp.stack([upper, lower], axis=1).reshape(4)

    first = left[0] + u[9] * (right[0] - left[0])
    reach = jnp.where(relation >= 0, _SLOPE * (lower[0] - upper[0]), wide)
    left, right = left.at[1].max(first - reach), right.at[1].min(first + reach)
    return (left + u[10:14] * (right - left)).at[0].set(first), down


def held_out_pairs(shapes: int, colors: int, share: float) -> np.ndarray:
    """True where a (shape, colour) pair is never shown in training, [shapes, colors].

    The shapes take turns in giving up a colour, each the one that most shapes still have: up to a share of one half
    every shape and every colour is still seen.

    >>> held_out_pairs(2, 4, 0.25).astype(int)
    array([[1, 0, 0, 0],
           [0, 1, 0, 0]])
    """
    held = np.zeros((shapes, colors), bool)
    for index in range(round(share * held.size)):
        shape = index % shapes
        held[shape, np.where(held[shape], -1, (~held).sum(0)).argmax()] = True
    return held


def held_out_relations(shapes: int, share: float) -> np.ndarray:
    """True where "shape, relation, other shape" is never captioned in training, [4, shapes, shapes].

    "a left of b" says the same as "b right of a": both are held out, or neither. Up to a share of one half, any
    two shapes keep an axis along which they are related in training.
    """
    held = np.zeros((len(RELATIONS), shapes, shapes), bool)
    for index in range(round(share * 2 * shapes * (shapes - 1))):
        rest, shape = divmod(index, shapes)
        turn, step = divmod(rest, shapes - 1)
        other, relation = (shape + step + 1) % shapes, 2 * ((shape + step + turn) % 2)
        held[relation, shape, other] = held[relation + 1, other, shape] = True
    return held


class _Facts(NamedTuple):
    """What a split may show and say, as tables whose rows are equally likely."""

    colors_of: np.ndarray  # [shapes, colours]: the colours that each shape is seen in, then padding
    colors_count: np.ndarray  # [shapes]
    statements: np.ndarray  # [n, 3]: relation, shape, other shape
    colors: np.ndarray  # [n, 2]: shape; colour
    color_attr: np.ndarray  # [n, 4]: shape, other shape; colour, other colour


@functools.lru_cache
def _facts(shapes: int, colors: int, share: float, split: Split) -> _Facts:
    held, unsaid = held_out_pairs(shapes, colors, share), held_out_relations(shapes, share)
    new = split == "unseen"
    colors_of = np.stack([np.argsort(row, kind="stable") for row in held])
    statements = np.argwhere(unsaid if new else ~unsaid & ~np.eye(shapes, dtype=bool))
    pairs = np.argwhere(held if new else ~held)
    a, b, c, d = np.ogrid[:shapes, :shapes, :colors, :colors]
    any_held = held[a, c] | held[b, d]
    color_attr = np.argwhere((a != b) & (c != d) & (any_held if new else ~any_held))
    if not (len(statements) and len(pairs)):  # in training there always are some, up to a share of one half
        raise UserError(f"data.held_out: {share:g} of {shapes} shapes and {colors} colours leaves nothing {split}")
    return _Facts(colors_of, (~held).sum(1), statements, pairs, color_attr)


def _pick(u: Float[Array, "*s"], n: int | Int[Array, "*s"]) -> Int[Array, "*s"]:
    """A uniform number in [0, 1) as a uniform index below n."""
    return jnp.minimum((u * n).astype(jnp.int32), n - 1)
