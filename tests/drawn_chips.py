"""Chips drawn for tests: bright squares (class 1) on a noisy ground (class 0)."""

import numpy as np
import zarr


def draw_chips(path, *, edge=64, bands=3, dtype="uint8", seed=0, invalid_value=None, schema=2, **more):
    """Every third chip is for validation. With `invalid_value`, the left quarter of each chip is invalid.

    Chips to classify are bright all over (class 1) or not, in turn. `more`: `count` of chips; `task`; `names` of the
    classes; `objects`, the classes of objects; `sealed`, the last so many chips are; `origin` of the labels; `slots`
    of the chips, of which there may be more than chips.
    """
    count, task, slots = more.get("count", 6), more.get("task", "segment"), more.get("slots")
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
    split = ["val" if i % 3 == 0 else "train" for i in range(count - more.get("sealed", 0))]
    split += ["sealed"] * more.get("sealed", 0)
    attributes = {
        "schema": schema,
        "bands": [f"b{i}" for i in range(bands)],
        "dtype": dtype,
        "classes": [{"id": i, "name": name} for i, name in enumerate(more.get("names", ("ground", "square")))],
        "chips": [{"scene": "a", "row": 0, "col": i * edge, "split": split[i]} for i in range(count)],
        "seed": seed,
        "task": task,
        "resolution": None,
        "extent": None,
        "scenes": {"a": "print"},
    }
    if schema == 2:
        arrays["objects"] = labels.astype(np.uint16) if more.get("objects") else np.zeros_like(labels, np.uint16)
        _as_schema_2(attributes, slots or range(count), more)
    group = zarr.create_group(path, overwrite=True)
    for name, array in arrays.items():
        group.create_array(name, data=_in_slots(array, slots) if slots else array)
    group.attrs.update(attributes)
    return path


def _as_schema_2(attributes, slots, more):
    for chip, slot in zip(attributes["chips"], slots, strict=True):
        chip["slot"] = slot
    scene = {"fingerprint": "print", "labels": "labels", "origin": more.get("origin", "drawn")}
    attributes["scenes"] = {"a": scene}
    attributes |= {"objects": list(more.get("objects", ())), "boundary": None}
    attributes["ground"] = {"edge": None, "pixels": 2048, "seed": 0, "val": 0.2, "sealed": 0.0}


def _in_slots(array, slots):
    """What lies in a slot that no record names is 7 all over."""
    stored = np.full((max(slots) + 2, *array.shape[1:]), 7, array.dtype)
    stored[list(slots)] = array
    return stored
