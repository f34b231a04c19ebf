"""A Prefect server, and what a team adds to it: a work pool, our deployments, a worker. Asked over its interface."""

import contextlib
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

from flows.server import ended, free_port, local_server

ROOT = Path(__file__).parents[1]
BUSY = 503
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


PASSWORD = "team:secret"  # noqa: S105 - of a server that lives for a minute
QUICK = {
    "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "1",
    "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "1",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
    "PREFECT_WORKER_QUERY_SECONDS": "1",
}
"""Shorter waits than a team wants, and nothing that a loaded machine would count as late."""


def settings():
    """Those of `infra/prefect.env`."""
    lines = (ROOT / "infra" / "prefect.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


@contextlib.contextmanager
def served(folder):
    secret = {"PREFECT_SERVER_API_AUTH_STRING": PASSWORD, "PREFECT_API_AUTH_STRING": PASSWORD}
    port = free_port()
    with local_server(
        folder / "prefect", port, {**settings(), **secret, **QUICK, "PYTHONPATH": str(ROOT)}
    ) as environment:
        url = f"http://127.0.0.1:{port}/api"
        with httpx.Client(base_url=url, auth=tuple(PASSWORD.split(":")), timeout=90) as client:
            token = client.get("csrf-token", params={"client": "tests"}).raise_for_status().json()["token"]
            client.headers.update({"Prefect-Csrf-Client": "tests", "Prefect-Csrf-Token": token})
            yield Site(url, environment, folder, client)


@dataclass
class Site:
    url: str
    environment: dict
    folder: Path
    client: httpx.Client
    """It has the password, and a token against forged requests."""

    def ask(self, path, body=None, method="POST"):
        """What the server answers; while its SQLite file is locked it is asked again, as Prefect's own clients do."""
        for patience in (1, 2, 4, 0):
            answer = self.client.request(method, path, json=None if method == "GET" else {} if body is None else body)
            if answer.status_code != BUSY:
                break
            time.sleep(patience)
        return answer.raise_for_status().json() if answer.content else None

    def prefect(self, *arguments, cwd=ROOT):
        command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
        done = subprocess.run(
            command,
            env=self.environment,
            cwd=cwd,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def runs(self, flow):
        """All runs of a flow."""
        return self.ask("flow_runs/filter", {"flows": {"name": {"any_": [flow]}}})

    def artifacts(self, run):
        found = self.ask("artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run["id"]]}}})
        return {artifact["key"]: artifact for artifact in found}

    def start(self, deployment, **parameters):
        """A run of a deployment, asked for now."""
        place = self.ask(f"deployments/name/{deployment}", method="GET")["id"]
        return self.ask(f"deployments/{place}/create_flow_run", {"parameters": parameters})["id"]

    def run(self, deployment, **parameters):
        return self.end(self.start(deployment, **parameters))

    def end(self, run_id, seconds=120):
        """The run, once its state is final."""
        return self.until(
            lambda: (run := self.ask(f"flow_runs/{run_id}", method="GET"))["state_type"] in FINAL and run, seconds
        )

    def until(self, happens, seconds=120):
        """What `happens` answers as soon as that is true."""
        deadline = time.monotonic() + seconds
        while not (answer := happens()):
            assert time.monotonic() < deadline, f"not within {seconds} s: {self.worker_log()}"
            time.sleep(0.2)
        return answer

    def worker_log(self):
        return "\n".join(path.read_text()[-3000:] for path in self.folder.glob("worker*.log"))

    @contextlib.contextmanager
    def worker(self):
        """A process worker of the pool `widefield`."""
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "widefield", "--type", "process"]
        with (self.folder / "worker.log").open("a") as log:
            process = subprocess.Popen(
                command, env=self.environment, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )
        with ended(process):
            yield process
