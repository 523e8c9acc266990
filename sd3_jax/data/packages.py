"""Packages of pictures: fetched by the ordinary client, held to their checksum, and read without being unpacked.

Nothing is opened before its bytes are what was pinned, and members are read into memory: no name in an archive is ever
a path on this machine.
"""

import base64
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sd3_jax.errors import UserError


@dataclass(frozen=True)
class Package:
    """One archive of one version."""

    name: str
    version: str
    licence: str  # an SPDX identifier
    file: str  # what the client calls the archive
    integrity: str  # sha512- and base64, as npm says it, or sha256- and hexadecimal digits, as Debian does

    @property
    def client(self) -> tuple[str, ...]:
        """The command that brings the archive to the working directory."""
        if self.file.endswith(".deb"):
            return ("apt-get", "download", f"{self.name}={self.version}")
        return ("npm", "pack", "--ignore-scripts", "--silent", f"{self.name}@{self.version}")

    @property
    def source(self) -> str:
        """Name and version, for the records."""
        return f"{self.name}@{self.version}"


def digest(data: bytes, kind: str) -> str:
    """The integrity of an archive's bytes. ``kind`` is sha512 (base64) or sha256 (hexadecimal)."""
    if kind == "sha512":
        return f"sha512-{base64.b64encode(hashlib.sha512(data).digest()).decode()}"
    return f"sha256-{hashlib.sha256(data).hexdigest()}"


def fetch(package: Package, folder: Path) -> bytes:
    """The archive's bytes, taken from ``folder`` if it is there, else brought there by npm or apt-get.

    Raises UserError without the client, when it fails, and when the bytes are not those that were pinned.
    """
    path = folder / package.file
    if path.exists():
        return _checked(package, path)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as fresh:  # a broken-off download is never taken for one
        _download(package, Path(fresh), f"{package.file} in {folder}")
        if not (Path(fresh) / package.file).exists():
            raise UserError(f"{package.source}: {package.client[0]} brought no {package.file}")
        data = _checked(package, Path(fresh) / package.file)
        os.replace(Path(fresh) / package.file, path)
    return data


def _checked(package: Package, path: Path) -> bytes:
    data = path.read_bytes()
    got = digest(data, package.integrity.partition("-")[0])
    if got != package.integrity:
        raise UserError(
            f"{path}: is not {package.source}, whose integrity is {package.integrity}, but has {got}: delete it and "
            "run the command again"
        )
    return data


def _download(package: Package, folder: Path, instead: str) -> None:
    client = package.client[0]
    if shutil.which(client) is None:
        raise UserError(f"{package.source}: needs {client}, which is not installed, or {instead}")
    try:
        done = subprocess.run(package.client, cwd=folder, capture_output=True, text=True, timeout=1800)
    except subprocess.TimeoutExpired:
        raise UserError(f"{package.source}: {client} had not fetched it after half an hour") from None
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        why = lines[-1].strip() if lines else "it does not say why"
        raise UserError(f"{package.source}: {client} failed ({why}); {instead} would do")


def members(package: Package, data: bytes) -> Iterator[tuple[str, bytes]]:
    """The name and the bytes of every plain file of an archive, in the archive's order; links are passed over."""
    try:
        inner = _deb_data(data) if package.file.endswith(".deb") else data
        with tarfile.open(fileobj=io.BytesIO(inner), mode="r|*") as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isreg() else None
                if file is not None:
                    yield member.name.removeprefix("./").removeprefix("package/"), file.read()
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise UserError(f"{package.file}: cannot be read ({error})") from None


def _deb_data(data: bytes) -> bytes:
    """The tar of files in a Debian package, which is an ar archive (deb(5)): headers of 60 bytes, even offsets."""
    at = 8
    while data[:8] == b"!<arch>\n" and at + 60 <= len(data):
        header = data[at : at + 60]
        name, size = header[:16].decode("ascii").strip().rstrip("/"), int(header[48:58])
        if name.startswith("data.tar"):
            return data[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
    raise ValueError("it is not a Debian package with a data.tar")
