"""`watch-archive`: looks for scenes that wait, and tells by an event; `segment-archive/on-new-scenes` listens.

Telling is sending without a receipt: an event can be lost with the server. Nothing else is: the scene still waits, the
next nightly run finds it by itself, and no state of ours says that anybody was told.
"""

import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from prefect import flow, get_run_logger
from prefect.events import emit_event
from prefect.runtime import flow_run
from prefect.states import Completed
from pydantic import Field

from flows.artifacts import plain, slug
from flows.parameters import Options, address
from pipeline.archive import Entry, Trust
from pipeline.nightly import ArchiveRequest, pending

ARRIVED = "widefield.scenes.arrived"
"""Name of the event; its resource is `widefield.archive.<slug>`."""
NAMES = 20
"""Most scenes that the event names."""


@flow(name="watch-archive", flow_run_name=lambda: f"watch {plain(flow_run.parameters['archive'])}")
def watch_archive(
    archive: str,
    bundle: str,
    out: str,
    *,
    match: str | None = None,
    trust: Trust = "archive",
    settle: Annotated[float, Field(ge=0)] = 60.0,
    options: Options = Options(),  # noqa: B008 - frozen
) -> Any:
    """Emit `widefield.scenes.arrived` if scenes wait to be segmented and are complete. Reads no pixel.

    A file that was written to in the last `settle` seconds may still grow: it is left for the next look. The same
    scenes give the same event, which Prefect takes once, so a scene that always fails does not start a run each time.

    Args:
        archive: A folder, an address such as s3://bucket/scenes, or a STAC catalogue.
        bundle: Folder of the trained model; or a registry, which stands for its champion.
        out: Folder of results.
        match: Only paths below the archive that fit this glob, as in north/*.tif.
        trust: `archive` trusts files below the archive; `untrusted` trusts none of them.
        settle: Seconds for which a file must not have grown.
        options: As for segment-archive.
    """
    request = ArchiveRequest(
        archive=address(archive), pattern=options.request("", "", bundle, out), match=match, trust=trust
    )
    ready, growing = sift(pending(request), settle)
    if ready:
        tell(request, ready)
    message = f"{len(ready)} scenes wait" + f"; {growing} may still grow and are left for the next look" * bool(growing)
    get_run_logger().info("%s: %s", plain(request.archive), message)
    return Completed(message=message)


def sift(waiting: Sequence[Entry], settle: float) -> tuple[list[Entry], int]:
    """The scenes that are complete, and the number of those whose files may still grow."""
    ready = [entry for entry in waiting if age(entry) >= settle]
    return ready, len(waiting) - len(ready)


def age(entry: Entry) -> float:
    """Seconds since a scene's files were last written to; infinite for objects of a store, which appear whole."""
    paths = {entry.address.path, *(path for _, path in entry.address.files)}
    now, local = time.time(), [Path(path) for path in paths if "://" not in path]
    try:
        return min((abs(now - path.stat().st_mtime) for path in local), default=float("inf"))  # a clock may be ahead
    except OSError:
        return 0.0


def tell(request: ArchiveRequest, ready: Sequence[Entry]) -> None:
    """Emit the event about `ready`; its identifier follows from what waits, and where its results will be."""
    names = [entry.name for entry in ready]
    key = "\n".join([str(request.pattern.out), *sorted(entry.fingerprint for entry in ready)])
    emit_event(
        event=ARRIVED,
        resource={"prefect.resource.id": f"widefield.archive.{slug(request.archive)}"},
        payload={
            "archive": request.archive,
            "out": str(request.pattern.out),
            "count": len(names),
            "scenes": [plain(name) for name in names[:NAMES]],
        },
        id=uuid.uuid5(uuid.NAMESPACE_URL, key),
    )
