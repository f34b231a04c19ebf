import configparser
from pathlib import Path

import dask
import jsonschema
import pytest
import yaml
from prefect_site import settings as settings_of_prefect

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
            assert "properties" not in part or name in part["properties"]  # without, any name is a variable's
            part = part.get("properties", {}).get(name, {})


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


def test_prefect_knows_every_setting():
    from prefect.settings.legacy import _get_settings_fields
    from prefect.settings.models.root import Settings

    known = set(_get_settings_fields(Settings))
    assert {name for name in settings_of_prefect() if name.startswith("PREFECT_")} <= known


def test_the_server_listens_on_the_loopback_interface_alone():
    ours = settings_of_prefect()
    assert ours["PREFECT_SERVER_API_HOST"] == "127.0.0.1"
    assert ours["PREFECT_API_URL"] == f"http://127.0.0.1:{ours['PREFECT_SERVER_API_PORT']}/api"


@pytest.mark.parametrize("name", ["prefect-server", "prefect-worker"])
def test_the_units_start_what_the_readme_starts(name):
    unit = configparser.ConfigParser(strict=False)
    unit.optionxform = str
    unit.read(INFRA / f"{name}.service")
    command = unit["Service"]["ExecStart"].removeprefix("/opt/widefield/.venv/bin/")
    assert f"\n{command} " in (INFRA.parent / "README.md").read_text().replace("\n", " \n") + " "
    assert unit["Service"]["EnvironmentFile"].endswith("infra/prefect.env")


def test_silent_runs_are_given_three_heartbeats():
    rule = yaml.safe_load((INFRA / "crashed.yaml").read_text())
    assert rule["trigger"]["within"] == 3 * int(settings_of_prefect()["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])


@pytest.mark.xdist_group("prefect")
def test_the_server_takes_the_rule_for_silent_runs_as_it_is(site):
    site.prefect("automation", "create", "--from-file", str(INFRA / "crashed.yaml"))
    rule = yaml.safe_load((INFRA / "crashed.yaml").read_text())
    (made,) = (each for each in site.ask("automations/filter") if each["name"] == rule["name"])
    assert {key: made["trigger"][key] for key in rule["trigger"] if key != "expect"} == {
        key: value for key, value in rule["trigger"].items() if key != "expect"
    }
    assert set(made["trigger"]["expect"]) == set(rule["trigger"]["expect"])
    assert made["actions"][0].items() >= rule["actions"][0].items()
