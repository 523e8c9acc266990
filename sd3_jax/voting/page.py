"""The page: one file of ours, as it is served and as it stands in a folder that needs no server."""

import base64
import functools
import hashlib
import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

from sd3_jax import records
from sd3_jax.errors import UserError
from sd3_jax.voting.ballot import Ballot, picture_bytes

PICTURES = "picture"  # the folder, and the path, that pictures are in
_DATA = '<script type="application/json" id="ballot"></script>'


@functools.cache
def source() -> str:
    """The page as it is in the package."""
    return resources.files("sd3_jax.voting").joinpath("vote.html").read_text(encoding="utf-8")


@functools.cache
def policy(exported: bool = False) -> str:
    """The content security policy: this page's own script and style by their hashes, its own pictures, nothing else."""
    [style] = re.findall(r"<style>(.*?)</style>", source(), re.DOTALL)
    [script] = re.findall(r"<script>(.*?)</script>", source(), re.DOTALL)
    near = "'self' data: file:" if exported else "'self' data:"  # data: the empty icon
    rules = {
        "default-src": "'none'",
        "img-src": near,
        "style-src": _sha256(style),
        "script-src": _sha256(script),
        "connect-src": "'none'" if exported else "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    if not exported:
        rules["frame-ancestors"] = "'none'"  # a header may say it, a page of itself not
    return "; ".join(f"{key} {value}" for key, value in rules.items())


def export(ballot: Ballot, folder: Path) -> None:
    """Write a folder that works by itself from a disk: the page with its ballot, and the pictures under their tokens.

    Raises UserError if something is there already. It is written whole or not at all.
    """
    if folder.exists():
        raise UserError(f"{folder}: exists already; export to a new folder")
    with records.whole(folder) as temporary:
        (temporary / PICTURES).mkdir(parents=True)
        for token, picture in ballot.pictures.items():
            (temporary / PICTURES / token).write_bytes(picture_bytes(picture))
        records.write_atomic(temporary / "index.html", standalone(ballot.shown()))


def standalone(shown: dict[str, Any]) -> str:
    """The page with a ballot in it."""
    data = json.dumps(shown).replace("<", "\\u003c")  # no caption ends the element that it stands in
    head = f'<meta http-equiv="Content-Security-Policy" content="{policy(exported=True)}">'
    page = source().replace("<head>", f"<head>\n{head}", 1)
    return page.replace(_DATA, _DATA.replace("></", f">{data}</"), 1)


def _sha256(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
