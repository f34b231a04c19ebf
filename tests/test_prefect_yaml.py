import copy

import pytest
import yaml
from prefect_site import ROOT

from flows.deployments import main, read_project
from flows.watch import ARRIVED
from flows.watch_labels import CHANGED
from pipeline.errors import UsageError

TEXT = (ROOT / "prefect.yaml").read_text()


@pytest.fixture
def project():
    return read_project(ROOT / "prefect.yaml")


def test_the_deployments_are_those_that_the_readme_names(project):
    names = {f"{each.entrypoint.partition('.')[2]}/{each.name}" for each in project.deployments}
    assert names == {
        "archive.segment_archive/nightly",
        "archive.segment_archive/on-new-scenes",
        "watch.watch_archive/every-10-minutes",
        "segment.segment_scene/on-demand",
        "watch_labels.watch_labels/every-10-minutes",
        "retrain.retrain/on-new-labels",
    }


def test_each_trigger_expects_what_its_watch_emits(project):
    triggers = {each.entrypoint: trigger for each in project.deployments for trigger in each.triggers}
    expected = {entrypoint: trigger.expect for entrypoint, trigger in triggers.items()}
    assert expected == {"flows.archive.segment_archive": [ARRIVED], "flows.retrain.retrain": [CHANGED]}
    assert triggers["flows.retrain.retrain"].schedule_after == 300


def test_runs_that_write_one_folder_wait_for_each_other(project):
    limits = [each.concurrency_limit for each in project.deployments if each.entrypoint.endswith("segment_archive")]
    assert [(limit.limit, limit.collision_strategy) for limit in limits] == [(1, "ENQUEUE")] * 2


def test_no_path_is_of_one_machine_only(project):
    values = [value for each in project.deployments for value in each.parameters.values()]
    assert [value for value in values if isinstance(value, str) and value.startswith("/")] == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("expect:", "expct:", "expct: Extra inputs are not permitted"),
        ("expect: [widefield.scenes.arrived]", "expect: []", "at least 1 item"),
        ("cron:", "kron:", "kron: Extra inputs are not permitted"),
        ("interval: 600, ", "", "give either cron or interval"),
        ("ENQUEUE}", "QUEUE}", "'ENQUEUE' or 'CANCEL_NEW'"),
        ("flows.watch.watch_archive", "flows/watch.py:watch_archive", "should match pattern"),
        ("work_pool:", "workpool:", "work_pool: Field required"),
    ],
)
def test_a_slip_is_found(tmp_path, monkeypatch, capsys, old, new, fault):
    assert old in TEXT
    (tmp_path / "prefect.yaml").write_text(TEXT.replace(old, new))
    with pytest.raises(UsageError, match=fault):
        read_project(tmp_path / "prefect.yaml")
    monkeypatch.chdir(tmp_path)
    assert main() == UsageError.exit_code
    assert "prefect.yaml" in capsys.readouterr().err


def test_every_parameter_is_one_that_its_flow_takes(project):
    from prefect.flows import load_flow_from_entrypoint

    for each in project.deployments:
        flow = load_flow_from_entrypoint(each.entrypoint)
        triggered = {name for trigger in each.triggers for name in trigger.parameters}
        assert triggered <= set(flow.parameters.properties)
        flow.validate_parameters(copy.deepcopy(each.parameters))


def test_three_lines_say_what_a_team_changes():
    assert set(yaml.safe_load(TEXT)["definitions"]["where"]) == {"archive", "bundle", "out"}
