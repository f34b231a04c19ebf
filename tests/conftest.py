import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data():
    """The folder of real imagery; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("WIDEFIELD_DATA", Path(__file__).parents[1] / "../shared/data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"real imagery is not at {folder}: set WIDEFIELD_DATA")
    return folder
