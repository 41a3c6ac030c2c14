"""Starts and ends the processes of a measurement.

Each process is the leader of its own process group and is ended by that id, never by name. Each dies with the rig
(parent-death signal); children that a killed run left in a namespace are found there by `namespaces.clean`.
"""

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from . import namespaces
from .errors import RigError


class Processes:
    """The processes of one system, with their output in `logs`."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: dict[subprocess.Popen[bytes], str] = {}
        logs.mkdir(parents=True, exist_ok=True)

    def start(
        self,
        name: str,
        argv: list[str],
        *,
        server: int | None = None,
        environment: dict[str, str] | None = None,
        output: Path | None = None,
        piped: bool = False,
    ) -> subprocess.Popen[bytes]:
        """Starts a process that stays, in the namespace of `server` when one is given.

        What it prints goes to its log, to the file `output`, or, when `piped`, to its `stdout` for the caller to read.
        """
        with open(self._log(name), "ab") as log, open(output or self._log(name), "ab") as out:
            process = subprocess.Popen(
                _command(argv, server),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if piped else out,
                stderr=log,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        self._running[process] = name
        return process

    def lines(
        self,
        name: str,
        argv: list[str],
        *,
        server: int | None = None,
        timeout: float,
        each: Callable[[str], None],
    ) -> None:
        """Runs a client to its end, giving each line of its output to `each`; fails on a bad exit or a late end."""
        with open(self._log(name), "ab") as log:
            process = subprocess.Popen(
                _command(argv, server), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, start_new_session=True
            )
        self._running[process] = name
        try:
            self._read_lines(name, process, time.monotonic() + timeout, each)
        finally:
            self.stop(process)
        if process.returncode != 0:
            raise RigError(f"{name} ended with {process.returncode}: {self._tail(name)}")

    def run(self, argv: list[str], *, server: int | None = None, timeout: float = 30) -> str:
        """Runs a short command and returns what it printed."""
        try:
            result = subprocess.run(
                _command(argv, server), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False
            )
        except FileNotFoundError as error:
            raise RigError(f"cannot run {argv[0]}: {error}") from error
        except subprocess.TimeoutExpired as error:
            raise RigError(f"'{' '.join(argv)}' gave no answer within {timeout:.0f} s") from error
        if result.returncode != 0:
            raise RigError(f"'{' '.join(argv)}' ended with {result.returncode}: {result.stderr.strip()[-400:]}")
        return result.stdout

    def answer(self, argv: list[str], *, server: int | None = None, timeout: float = 30) -> str | None:
        """What a short command printed, or nothing when it failed: for asking whether something is up already."""
        try:
            return self.run(argv, server=server, timeout=timeout)
        except RigError:
            return None

    def stop(self, process: subprocess.Popen[bytes], grace: float = 3) -> None:
        """Ends one process group: asked first, then killed."""
        self._running.pop(process, None)
        for signum, wait in ((signal.SIGTERM, grace), (signal.SIGKILL, 5)):
            if process.poll() is None:
                _signal_group(process.pid, signum)
                try:
                    process.wait(wait)
                except subprocess.TimeoutExpired:
                    continue
        _signal_group(process.pid, signal.SIGKILL)
        if process.stdout is not None:
            process.stdout.close()

    def stop_all(self) -> None:
        for process in reversed(self._running):
            _signal_group(process.pid, signal.SIGTERM)
        for process in list(reversed(self._running)):
            self.stop(process)

    def wait_until(self, what: str, ready: Callable[[], bool], timeout: float, pause: float = 0.2) -> None:
        """Waits for `ready`, bounded; fails at once when one of the daemons ends."""
        deadline = time.monotonic() + timeout
        while not ready():
            for process, name in self._running.items():
                if process.poll() not in (None, 0):
                    raise RigError(f"{name} ended with {process.returncode} instead of running: {self._tail(name)}")
            if time.monotonic() > deadline:
                raise RigError(f"{what}: not within {timeout:.0f} s")
            time.sleep(pause)

    def _tail(self, name: str, count: int = 3) -> str:
        """The last lines a process printed, for error texts."""
        lines = self._log(name).read_text(errors="replace").splitlines()
        return " | ".join(lines[-count:]) or "it printed nothing"

    def _log(self, name: str) -> Path:
        return self._logs / f"{name}.log"

    def _read_lines(
        self, name: str, process: subprocess.Popen[bytes], deadline: float, each: Callable[[str], None]
    ) -> None:
        assert process.stdout is not None
        descriptor = process.stdout.fileno()
        pending = b""
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                raise RigError(f"{name} was not done in time and was ended: {self._tail(name)}")
            chunk = os.read(descriptor, 65536)
            if not chunk:
                process.wait(10)
                return
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                each(line.decode(errors="replace"))


def _command(argv: list[str], server: int | None) -> list[str]:
    dies_with_us = ["setpriv", "--pdeathsig", "KILL", "--"]
    return dies_with_us + (namespaces.enter(server) if server else []) + argv


def _signal_group(pid: int, signum: int) -> None:
    try:
        os.killpg(pid, signum)
    except ProcessLookupError:
        pass
