"""What workers ask one another: their metrics, and receipts of calls that another one served.

Each worker also serves a Unix socket in a directory that only this user can enter. It is the same
application; what came in there is answered by this worker alone and never passed on again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from starlette.types import Scope

log = logging.getLogger("aegis_c.gateway.siblings")

_BACKLOG: Final = 128
_ANSWER_MAX: Final = 64 << 20
_FOLDER_MAX: Final = 100  # a socket's path has at most 107 bytes


class Sockets:
    """The workers' private sockets: made by the supervisor, which removes them at the end."""

    def __init__(self, private: Path, workers: int) -> None:
        """In ``private``/run, where only this user can go; what an earlier run left is removed."""
        self.folder = _folder(private / "run")
        self.paths = [os.path.join(self.folder, f"w{number}") for number in range(workers)]
        self.listeners = [socket.socket(socket.AF_UNIX) for _ in self.paths]
        for path, listener in zip(self.paths, self.listeners, strict=True):
            listener.bind(path)
            listener.listen(_BACKLOG)

    def remove(self) -> None:
        """Close and delete them."""
        for listener in self.listeners:
            listener.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def _folder(wanted: Path) -> str:
    if len(os.fsencode(wanted.absolute())) <= _FOLDER_MAX:
        shutil.rmtree(wanted, ignore_errors=True)
        wanted.mkdir(mode=0o700)
        return str(wanted.absolute())
    return tempfile.mkdtemp(prefix="aegis-workers-")


@dataclass(frozen=True)
class Answer:
    """What a sibling said."""

    status: int
    media_type: str
    body: bytes


class Siblings:
    """The other workers, as one worker sees them."""

    def __init__(self, number: int, paths: list[str]) -> None:
        self._own = paths[number]
        self._others = {n: path for n, path in enumerate(paths) if n != number}
        self.number = number

    def is_from_sibling(self, scope: Scope) -> bool:
        """Whether a request came in over this worker's private socket."""
        server = scope.get("server")
        return server is not None and server[0] == self._own

    async def ask(
        self, target: str, headers: dict[str, str], seconds: float
    ) -> dict[int, Answer | None]:
        """GET ``target`` from every sibling at once; None for one that gave no answer in time."""

        async def one(path: str) -> Answer | None:
            try:
                async with asyncio.timeout(seconds):
                    return await _get(path, target, headers)
            except (OSError, ValueError, EOFError) as error:
                log.warning("no answer from the worker at %s: %s", path, error or "too late")
                return None

        answers = await asyncio.gather(*(one(path) for path in self._others.values()))
        return dict(zip(self._others, answers, strict=True))


async def _get(path: str, target: str, headers: dict[str, str]) -> Answer:
    """One request on a connection of its own. Raises OSError, ValueError, EOFError."""
    lines = [f"GET {target} HTTP/1.1", "host: worker", "connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    text = "\r\n".join([*lines, "", ""])
    if text.count("\n") != len(lines) + 1 or "\0" in text:
        raise ValueError("a header that is passed on holds a line break")
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(text.encode("latin-1"))
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in head[1:-2])
        size = int(fields["content-length"])
        if size > _ANSWER_MAX:
            raise ValueError(f"an answer of {size} bytes")
        body = await reader.readexactly(size)
    finally:
        writer.close()
    return Answer(int(head[0].split(" ")[1]), fields.get("content-type", ""), body)
