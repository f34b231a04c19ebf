"""A Prefect server of our own on the loopback interface, for the demo and for tests."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from pipeline.errors import WidefieldError

HOST = "127.0.0.1"
PATIENCE = 90.0
"""Seconds that a first start, with its database migrations, may take."""


def environment(home: Path, port: int, settings: Mapping[str, str]) -> dict[str, str]:
    """Variables for the server and for whoever talks to it: nothing of the user's Prefect is touched or told."""
    others = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    ours = {
        "PREFECT_HOME": str(home.absolute()),
        "PREFECT_API_URL": f"http://{HOST}:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
        "DO_NOT_TRACK": "1",
    }
    return others | dict(settings) | ours


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def local_server(home: Path, port: int, settings: Mapping[str, str] = MappingProxyType({})) -> Iterator[dict[str, str]]:
    """A healthy server while the block runs; yields the environment that reaches it. `settings` are Prefect's own.

    Raises:
        WidefieldError: it did not start; its log is named.
    """
    home.mkdir(parents=True, exist_ok=True)
    variables, log = environment(home, port, settings), home / "server.log"
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(port)]
    with log.open("w") as output:
        process = subprocess.Popen(command, env=variables, stdout=output, stderr=output, start_new_session=True)
    with ended(process):
        _wait_until_healthy(process, port, log)
        yield variables


@contextlib.contextmanager
def ended(process: "subprocess.Popen[bytes]") -> "Iterator[subprocess.Popen[bytes]]":
    """The process while the block runs; afterwards it is asked to end, and made to after ten seconds."""
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_healthy(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(f"http://{HOST}:{port}/api/health", timeout=2).close()
            return
        time.sleep(0.3)
    raise WidefieldError(f"the Prefect server did not start within {PATIENCE:.0f} s: see {log}")
