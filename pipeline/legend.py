"""Names of classes: which can be had, and which of them are objects or part them."""

import re
from collections.abc import Sequence

from pipeline.errors import LabelError
from pipeline.labelforms.base import IGNORE

_NAME = re.compile("[A-Za-z0-9_-]{1,64}")


def check_classes(classes: Sequence[str]) -> None:
    """Refuse classes that no bundle can have.

    Raises:
        LabelError: fewer than two, too many, a name with other characters than letters, digits, - and _, or one twice.
    """
    if not 2 <= len(classes) <= IGNORE:
        raise LabelError(f"there are {len(classes)} classes ({', '.join(classes[:3])}): 2 to {IGNORE} are needed")
    wrong = [name for name in classes if not _NAME.fullmatch(name)]
    if wrong:
        raise LabelError(f"{wrong[0]!r} is no name of a class: use letters, digits, - and _, 64 at most")
    twice = [name for name in classes if list(classes).count(name) > 1]
    if twice:
        raise LabelError(f"two classes have one name, {twice[0]}: labels tell classes by name")


def object_ids(
    classes: Sequence[str], boundary: str | None, objects: Sequence[str] | None
) -> tuple[int | None, tuple[int, ...] | None]:
    """The id of `boundary`, and those of `objects`; None where nobody says which they are.

    A boundary parts the objects of one class: beside several, nobody could tell whose pixels it took. Where nobody
    says, that is the only class beside 0 and the boundary.

    Raises:
        LabelError: one is no class but 0, the boundary is one of the objects, or has not one class of them.
    """
    named = None if objects is None else _ids(objects, classes)
    if boundary is None:
        return None, named
    parts = _ids((boundary,), classes)[0]
    if named is not None and parts in named:
        raise LabelError(f"{boundary} cannot be a class of objects and part them")
    others = tuple(index for index in range(1, len(classes)) if index != parts) if named is None else named
    if len(others) != 1:
        found = ", ".join(classes[index] for index in others) or "none"
        raise LabelError(f"{boundary} parts the objects of one class, here are {found}: name one with --object")
    return parts, others


def _ids(names: Sequence[str], classes: Sequence[str]) -> tuple[int, ...]:
    wrong = [name for name in names if name not in classes[1:]]
    if wrong:
        known = ", ".join(classes[1:]) or "none"
        raise LabelError(f"{wrong[0]!r} is no class of objects or of their boundary: known are {known}")
    return tuple(sorted(list(classes).index(name) for name in set(names)))
