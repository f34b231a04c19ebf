"""A server of our own starts, answers, and goes without a trace."""

import json

import httpx
import pytest

pytestmark = pytest.mark.xdist_group("prefect")


def test_who_has_no_password_is_refused(site):
    assert httpx.get(f"{site.url}/deployments/name/segment-scene/on-demand").status_code == httpx.codes.UNAUTHORIZED


def test_an_order_without_a_token_is_refused_even_with_the_password(site):
    answer = httpx.post(f"{site.url}/flow_runs/filter", json={}, auth=site.client.auth)
    assert answer.status_code == httpx.codes.FORBIDDEN


def test_the_server_has_the_settings_of_infra(site):
    told = site.ask("admin/settings", method="GET")
    assert told["server"]["analytics_enabled"] is False
    assert told["server"]["concurrency"]["lease_storage"].endswith("filesystem")
    assert "secret" not in json.dumps(told)
