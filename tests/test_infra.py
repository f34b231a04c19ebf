from pathlib import Path

import dask
import jsonschema
import pytest
import yaml

from pipeline.executors import DaskExecutor

INFRA = Path(__file__).parents[1] / "infra"


@pytest.fixture
def settings():
    return yaml.safe_load((INFRA / "dask.yaml").read_text())


def test_dask_knows_every_setting(settings):
    import distributed

    schema = yaml.safe_load(Path(distributed.__file__).with_name("distributed-schema.yaml").read_text())
    jsonschema.validate(settings, schema)
    for path in leaves(settings):
        part = schema
        for name in path:
            part = part["properties"][name]


@pytest.mark.xdist_group("dask")
def test_our_own_workers_have_the_same_settings(settings):
    with DaskExecutor(workers=1):
        ours = {path: dask.config.get(".".join(path)) for path in leaves(settings)}
    assert ours == leaves(settings)


def leaves(tree, above=()):
    """Value of every leaf by its path."""
    found = {}
    for name, value in tree.items():
        path = (*above, name)
        found |= leaves(value, path) if isinstance(value, dict) else {path: value}
    return found
