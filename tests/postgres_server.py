"""A PostgreSQL server of the tests' own: no network, a folder of its own, an unprivileged user."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DATABASE, USER = "tuning", "tilewright"
START_SECONDS = 60.0


def missing() -> str:
    """What this machine lacks to run a server, empty if nothing."""
    try:
        import psycopg  # noqa: F401
    except ImportError as e:
        return f"psycopg cannot be imported ({e}): pip install tilewright[postgres]"
    return "" if _folder() is not None else "there is no PostgreSQL server here: apt-get install postgresql"


def _folder() -> Path | None:
    """Where initdb and postgres lie; Debian keeps them off the path."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return folders[-1].parent if folders else None


def _owner() -> str | None:
    """The user to run as, where we are root: the server refuses that."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


class Server:
    """A server that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        programs = _folder()
        assert programs is not None
        self._programs = programs
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return self.url_of(DATABASE)

    def url_of(self, database: str) -> str:
        return f"postgresql+psycopg://{USER}@/{database}?host={self.folder}"

    def create(self, database: str) -> str:
        """A new, empty database; its URL."""
        import psycopg

        with psycopg.connect(host=str(self.folder), user=USER, dbname="postgres", autocommit=True) as c:
            c.execute(f"create database {database}".encode())
        return self.url_of(database)

    def make(self) -> None:
        options = ["-A", "trust", "-U", USER, "--no-sync"]
        command = [str(self._programs / "initdb"), "-D", str(self.folder / "data"), *options]
        subprocess.run(command, user=_owner(), check=True, capture_output=True, cwd="/")

    def start(self) -> None:
        """Start it and wait until it answers; again while processes of a killed one still hold its memory."""
        import psycopg

        end = time.monotonic() + START_SECONDS
        while True:
            if self._process is None or self._process.poll() is not None:
                self._launch()
            try:
                psycopg.connect(host=str(self.folder), user=USER, dbname="postgres", connect_timeout=5).close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)

    def _launch(self) -> None:
        """Without fsync: what was written outlives processes, and machines are not what the tests kill."""
        command = [str(self._programs / "postgres"), "-D", str(self.folder / "data"), "-k", str(self.folder)]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "-c", "listen_addresses=", "-c", "fsync=off"], user=_owner(), stdout=log, stderr=log, cwd="/"
            )

    def kill(self) -> None:
        """kill -9 of the server; its own processes end when they see it."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)  # ends without waiting for clients
            self._process.wait(30)


@contextmanager
def running() -> Iterator[Server]:
    """A server for as long as the context lasts."""
    folder = Path(tempfile.mkdtemp(prefix="tilewright-pg-"))  # short: a socket's path may have 107 characters
    try:
        owner = _owner()
        if owner is not None:
            shutil.chown(folder, owner)
        folder.chmod(0o755)
        server = Server(folder)
        server.make()
        server.start()
        server.create(DATABASE)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
