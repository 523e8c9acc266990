"""Anyone's table of training runs (CSV) -> points that a law can be fitted to.

Columns by name: ``flops``, ``params``, ``data`` (images or tokens), ``loss``, optionally ``run`` (rows of one run are
not independent; without it each row is its own) and ``schedule``. Of flops, params and data the third follows from
the other two by C = 6 N D. What was left out is said in sentences in ``table.attrs["notes"]``.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from sd3_jax.errors import UserError

QUANTITIES = ("flops", "params", "data", "loss")
NAMES = (*QUANTITIES, "run", "schedule")
MOST_ROWS = 2000  # more do not narrow an interval that anyone would believe


def read_points(path: str | Path, columns: Mapping[str, str] | None = None, group: str | None = None) -> pd.DataFrame:
    """The rows of a CSV as points: columns run, loss and, as far as they are there, flops, params, images.

    ``columns`` says under which header a name of ours stands; ``group`` is a column that is kept as it is. Rows with
    an empty or infinite number are left out and counted, exact repetitions of a row count once, and of more than
    2,000 rows evenly many are taken, in the order of compute.

    Raises UserError if there is no such file, column or row, or if a number is no number, or not positive.
    """
    table = _read(Path(path))
    headers = {name: (columns or {}).get(name, name) for name in NAMES}
    table = _renamed(table, path, headers, columns or {}, group)
    notes, lines = [], table.index.to_numpy()
    for name in QUANTITIES:
        if name in table:
            values = pd.to_numeric(table[name], errors="coerce").astype(float)
            is_text = values.isna() & table[name].notna()
            bad = is_text | (values <= 0)
            if bad.any():
                line, text = lines[bad.to_numpy()][0], table[name][bad].iloc[0]
                text = f"{text!s:.40}" if is_text.any() else f"{text:g}"
                raise UserError(f"{path}: line {line}: {headers[name]} is {text}; it must be a positive number")
            table[name] = values.replace(np.inf, np.nan)
    measured = [name for name in QUANTITIES if name in table]
    whole = table[measured].notna().all(axis=1)
    if not whole.all():
        notes.append(f"{_rows(int((~whole).sum()))} with an empty or infinite {' or '.join(measured)}, left out.")
    table = table[whole]
    distinct = ~table.duplicated()
    if not distinct.all():
        notes.append(f"{_rows(int((~distinct).sum()))} that another repeats exactly, counted once.")
    table = table[distinct]
    if table.empty:
        raise UserError(f"{path}: holds no row with numbers in {', '.join(headers[name] for name in measured)}")
    if "run" not in table:
        table["run"] = "line " + table.index.astype(str)
    table["run"] = table["run"].fillna("").astype(str)
    table, note = _completed(table)
    notes += [note] if note else []
    if len(table) > MOST_ROWS:
        notes.append(f"of {len(table):,} rows {MOST_ROWS:,} are taken, evenly in the order of compute.")
        order = [name for name in ("flops", "params", "data", "loss", "run") if name in table]
        place = np.linspace(0, len(table) - 1, MOST_ROWS).round().astype(int)
        table = table.sort_values(order, kind="stable").iloc[place]
    points = table.rename(columns={"data": "images"}).reset_index(drop=True)
    points.attrs["notes"] = notes
    return points


def parse_columns(text: str | None) -> dict[str, str]:
    """``params=N,data=D`` as a dictionary. Raises UserError for what is not a list of our names.

    >>> parse_columns("params=N, data=D")
    {'params': 'N', 'data': 'D'}
    """
    found = {}
    for part in (text or "").split(",") if text else []:
        name, _, header = (piece.strip() for piece in part.partition("="))
        if name not in NAMES or not header:
            raise UserError(f"--columns: {part.strip()!r} is not NAME=HEADER; names are {', '.join(NAMES)}")
        found[name] = header
    return found


def _read(path: Path) -> pd.DataFrame:
    """The file as text and numbers, indexed by its lines."""
    if not path.exists():
        raise UserError(f"{path}: no such file, nor a directory of runs")
    try:
        table = pd.read_csv(path, encoding="utf-8-sig", skipinitialspace=True, low_memory=False)
    except pd.errors.EmptyDataError:
        raise UserError(f"{path}: is empty; its first line must name its columns") from None
    except (pd.errors.ParserError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is no CSV: {str(error).strip().splitlines()[-1]}") from None
    table.columns = table.columns.astype(str).str.strip()
    if not isinstance(table.index, pd.RangeIndex):
        raise UserError(f"{path}: is no CSV: its rows have more values than its first line has names")
    table.index = table.index + 2
    return table


def _renamed(
    table: pd.DataFrame, path: str | Path, headers: Mapping[str, str], asked: Mapping[str, str], group: str | None
) -> pd.DataFrame:
    """Our columns under our names, and the group."""
    there = ", ".join(table.columns[:12]) + (", ..." if len(table.columns) > 12 else "")
    kept = {name: table[header] for name, header in headers.items() if header in table}
    lacking = [headers[name] for name in asked if name not in kept]
    lacking += [] if group is None or group in table or group in kept else [group]
    if lacking:
        raise UserError(f"{path}: has no column {lacking[0]}; there are {there}")
    if "loss" not in kept or not {"flops", "params", "data"} & kept.keys():
        raise UserError(
            f"{path}: needs a column loss, and flops or params and data; there are {there}; other headers: "
            "--columns params=N,data=D,loss=L"
        )
    if group is not None and group not in kept:
        kept[group] = table[group]
    return pd.DataFrame(kept)


def _completed(table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The third of flops, params and data from two, and a sentence that says so."""
    lacking = {"flops", "params", "data"} - set(table)
    if len(lacking) != 1:
        return table, ""
    if lacking == {"flops"}:
        return table.assign(flops=6 * table["params"] * table["data"]), "no flops: C = 6 N D."
    if lacking == {"data"}:
        return table.assign(data=table["flops"] / (6 * table["params"])), "no data: D = C / 6 N."
    return table.assign(params=table["flops"] / (6 * table["data"])), "no params: N = C / 6 D."


def _rows(number: int) -> str:
    return f"{number:,} row{'' if number == 1 else 's'}"
