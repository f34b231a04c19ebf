import os
import sys
from pathlib import Path

import pytest
from drawn_bundle import draw_bundle
from filelock import FileLock
from prefect_site import served


@pytest.fixture(scope="session")
def data():
    """The folder of real imagery; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("WIDEFIELD_DATA", Path(__file__).parents[1] / "../shared/data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"real imagery is not at {folder}: set WIDEFIELD_DATA")
    return folder


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
    """One folder for all test processes, so that what is costly is made once."""
    base = tmp_path_factory.getbasetemp()
    folder = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    return folder / "shared"


@pytest.fixture(scope="session", autouse=True)
def _own_cache(shared_folder):
    """Tests build engines into a cache of their own, and their child processes find it."""
    (shared_folder / "cache").mkdir(parents=True, mode=0o700, exist_ok=True)
    os.environ["WIDEFIELD_CACHE"] = str(shared_folder / "cache")


@pytest.fixture(scope="session")
def bundle(shared_folder):
    """A small Inception bundle with random weights: tiles of 128 and 256 pixels, halo 32, three bands."""
    path = shared_folder / "bundle"
    with FileLock(shared_folder / "bundle.lock"):
        if not path.exists():
            draw_bundle(path, halo=32, tiles=(128, 256))
    return path


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """A Prefect server on the loopback interface with the settings of `infra/`, a password, and a worker's pool."""
    with served(tmp_path_factory.mktemp("site")) as site:
        yield site


@pytest.fixture
def widefield(monkeypatch, capsys):
    """Run the command; (exit status, standard output, standard error)."""

    from flows import cli

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["widefield", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code or 0, *capsys.readouterr()

    return run
