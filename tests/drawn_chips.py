"""Chips drawn for tests: bright squares (class 1) on a noisy ground (class 0)."""

import numpy as np
import zarr


def draw_chips(path, *, count=6, edge=64, bands=3, dtype="uint8", seed=0, invalid_value=None, task="segment"):
    """Every third chip is for validation. With `invalid_value`, the left quarter of each chip is invalid.

    Chips to classify are bright all over (class 1) or not, in turn.
    """
    rng = np.random.default_rng(seed)
    labels = np.zeros((count, edge, edge), np.uint8)
    for chip in labels:
        row, col = rng.integers(0, edge // 2, 2)
        chip[row : row + edge // 3, col : col + edge // 3] = 1
    if task == "classify":
        labels[:] = (np.arange(count) // 2 % 2)[:, None, None]
    pixels = (rng.integers(0, 100, (count, bands, edge, edge)) + 100 * labels[:, None]).astype(dtype)
    valid = np.ones_like(labels)
    if invalid_value is not None:
        valid[..., : edge // 4] = 0
        pixels[..., : edge // 4] = invalid_value
    arrays = {"pixels": pixels, "valid": valid, "labels": labels}
    arrays |= {"scale": np.full((count, bands), 0.5, np.float32), "offset": np.full((count, bands), 3, np.float32)}
    chips = [{"scene": "a", "row": 0, "col": i, "split": "train" if i % 3 else "val"} for i in range(count)]
    group = zarr.create_group(path, overwrite=True)
    for name, array in arrays.items():
        group.create_array(name, data=array)
    group.attrs.update(
        {
            "schema": 1,
            "bands": [f"b{i}" for i in range(bands)],
            "dtype": dtype,
            "classes": [{"id": 0, "name": "ground"}, {"id": 1, "name": "square"}],
            "chips": chips,
            "seed": seed,
            "task": task,
            "resolution": None,
        }
    )
    return path
