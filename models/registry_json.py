"""The files that a registry writes about itself: JSON objects with a schema number."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from models.errors import RegistryError
from models.registry_store import Store

SCHEMA = 1


def read_json(store: Store, name: str) -> tuple[dict[str, Any] | None, str | None]:
    """A JSON object and its version; ours carry a schema number, which must be one that this version reads."""
    stored = store.read(name)
    if stored is None:
        return None, None
    try:
        content = json.loads(stored.content)
    except ValueError as error:
        raise RegistryError(f"{store.place}: {name} is damaged: it is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise RegistryError(f"{store.place}: {name} is damaged: it is no JSON object")
    if not name.startswith("bundles/") and content.get("schema") != SCHEMA:
        got = content.get("schema")
        raise RegistryError(f"{store.place}: {name} has schema {got}: this version reads schema {SCHEMA}")
    return content, stored.version


def to_json(value: Mapping[str, Any]) -> bytes:
    """As they are written."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def now() -> str:
    """ISO 8601, UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def short(digest: str | None) -> str:
    """As messages name a bundle, or nobody."""
    return digest[:12] if digest else "nobody"
