"""Which scenes a path means, and what their results are called."""

from collections import defaultdict
from pathlib import Path

from pipeline.errors import UsageError
from pipeline.outputs import MASK

SUFFIXES = (".tif", ".tiff")
LABELS_END = "-labels"
"""Ends the name of a class raster that lies beside its scene."""


def list_scenes(path: Path) -> list[tuple[Path, str]]:
    """(file, name of its result) of one scene, or of all scenes at or below a folder, in the order of their names.

    The name is the scene's path below the folder, without its suffix. Hidden files, class rasters (`*-labels.tif`) and
    the results of earlier runs are no scenes.

    Raises:
        UsageError: nothing is there, or two scenes would share one result.
    """
    if path.is_file():
        return [(path, path.stem)]
    if not path.is_dir():
        raise UsageError(f"{path}: no such file or folder")
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    scenes = [file for file in files if _is_scene(file, path)]
    if not scenes:
        raise UsageError(f"{path} holds no scene: looked for {', '.join(SUFFIXES)}")
    named = [(file, file.relative_to(path).with_suffix("").as_posix()) for file in scenes]
    _check_collisions(named)
    return named


def _is_scene(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return not hidden and not file.stem.endswith(LABELS_END) and not (file.parent / MASK).exists()


def _check_collisions(named: list[tuple[Path, str]]) -> None:
    by_name: defaultdict[str, list[str]] = defaultdict(list)
    for file, name in named:
        by_name[name].append(file.name)
    for name, files in by_name.items():
        if len(files) > 1:
            raise UsageError(f"{' and '.join(files)} would both be written to {name}: rename one of them")
        nested = [other for other in by_name if other.startswith(f"{name}/")]
        if nested:
            raise UsageError(f"the result of {files[0]} would hold that of {nested[0]}: rename one of them")
