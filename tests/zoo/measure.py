"""One graph in a process of its own: `python -m tests.zoo.measure FOLDER TILE` prints its speed and peak memory."""

import json
import sys
from pathlib import Path

import numpy as np

from models.engines.backends import backend_of
from models.engines.base import Batch, EngineRecord
from models.engines.device import device
from models.engines.openvino import OpenVINOEngine, unavailable
from models.engines.speed import _steady, peak_bytes
from pipeline.resources import cores


def main() -> None:
    """Measure as `models.engines.build` does."""
    folder, tile = Path(sys.argv[1]), int(sys.argv[2])
    record = EngineRecord(
        digest="",
        backend="openvino",
        version=backend_of("openvino").versions(),
        precision="fp32" if unavailable("cpu", "bf16") else "bf16",
        device=device(),
        tile=tile,
        batch=1,
        dtype="uint8",
        threads=cores(),
        bundle="",
        peak_bytes=0,
        seconds_per_tile=0.0,
        parity=None,
    )
    engine = OpenVINOEngine(record, folder)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, tile, tile), np.uint8)
    batch = Batch(pixels, np.ones((1, tile, tile), bool), np.ones(3, np.float32), np.zeros(3, np.float32))
    facts = {"seconds": _steady(engine, batch), "peak_bytes": peak_bytes(), "precision": record.precision}
    print(json.dumps(facts))  # noqa: T201 - the answer


if __name__ == "__main__":
    main()
