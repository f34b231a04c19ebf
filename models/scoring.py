"""All scores of a model, from labels and predictions: one implementation for training, the gate and `evaluate`.

Nothing here imports torch, because `evaluate` and the gate's report run where no torch may be loaded (design: pipeline
imports none). torchmetrics, which would load it, is the oracle of the tests instead.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models import bootstrap, boundaries
from models.boundaries import Agreement
from models.calibration import Reliability
from models.metrics import Counts, confusion, scores
from models.objects import Matches, ap50, compact, instances, match
from models.spec import NODATA, check_objects

Labels = NDArray[np.uint8]
Part = tuple[str, tuple[slice, slice]]
"""A block of ground by its name, and where it lies in an array."""


class Scorer:
    """Collects labels and predictions of an array after the other, and scores them all together.

    The order of the arrays does not matter, and scorers of disjoint ground can be put together (`include`).
    """

    def __init__(self, names: Sequence[str], objects: Sequence[int] = (), boundary: int | None = None) -> None:
        """Nothing counted yet.

        Args:
            names: of the classes, in the order of their ids.
            objects: classes whose connected things are objects: AP50 is asked for.
            boundary: the class that separates touching objects, if one does.

        Raises:
            ValueError: these are no classes, or one boundary separates objects of several.
        """
        check_objects(tuple(objects), boundary, len(names))
        self.names, self.objects, self.boundary = tuple(names), tuple(objects), boundary
        self.blocks: dict[str, Counts] = {}
        """(K, K) pixels of each block of ground by true and predicted class."""
        self.reliability = Reliability()
        self.outlines: dict[str, boundaries.Outlines] = {}
        """(K, 4) contour pixels of each block."""
        self.foreground = {one: np.zeros(3, np.int64) for one in self.objects}
        """Pixels of each object class: on both sides, true, predicted."""
        self.matches: dict[int, list[tuple[str, Matches]]] = {one: [] for one in self.objects}
        """Block and objects of each image, by object class."""
        self.calibrated = False
        """Whether confidences were given."""

    def add(
        self,
        labels: Labels,
        predictions: Labels,
        *,
        block: str | Sequence[Part],
        objects: NDArray[np.integer] | None = None,
        confidence: NDArray[np.floating] | None = None,
    ) -> None:
        """Count one image. Pixels that are 255 in labels or predictions count nowhere.

        Args:
            labels: class ids or 255; (H, W), or any other shape where outlines and objects have no meaning.
            predictions: the same shape.
            block: name of the block of ground that the array belongs to; or several with their parts, which must
                partition the array. Blocks of one name are added up. The image's AP50 belongs to the first.
            objects: (H, W) ids of the true objects, 0 where there is none; None: components of `labels`.
            confidence: the largest probability, 0 to 1; NaN where there is none.

        Raises:
            ValueError: shapes differ, or an id is neither a class nor 255.
        """
        parts: Sequence[tuple[str, Any]] = [(block, ...)] if isinstance(block, str) else block
        for name, part in parts:
            _add(self.blocks, name, confusion(labels[part], predictions[part], len(self.names)))
        known = (labels != NODATA) & (predictions != NODATA)
        if confidence is not None:
            self.calibrated = True
            self.reliability += Reliability.of(confidence[known], labels[known] == predictions[known])
        if labels.ndim == 2:
            agreement = Agreement.of(labels, predictions)
            for name, part in parts:
                _add(self.outlines, name, agreement.counts(len(self.names), part))
        if labels.ndim == 2 and self.objects:
            ids = None if objects is None else compact(objects)
            self._add_objects(parts[0][0], labels, predictions, known, ids)

    def _add_objects(
        self, block: str, labels: Labels, predictions: Labels, known: NDArray[np.bool_], given: NDArray[Any] | None
    ) -> None:
        owners = None if given is None else self._classes(labels, given)
        for one in self.objects:
            predicted = instances(predictions, of=one, boundary=self.boundary)
            if given is None or owners is None:
                true: NDArray[Any] = instances(labels, of=one, boundary=self.boundary)
            else:
                true = np.where(owners[given] == one, given, 0)
            self.matches[one].append((block, match(np.where(known, true, 0), np.where(known, predicted, 0))))
            here, there = (self._is(side, one) & known for side in (labels, predictions))
            self.foreground[one] += [np.count_nonzero(side) for side in (here & there, here, there)]

    def _is(self, labels: Labels, one: int) -> NDArray[np.bool_]:
        """An object's pixels: of its class, or of the boundary that was cut out of it."""
        return np.isin(labels, one if self.boundary is None else (one, self.boundary))

    def _classes(self, labels: Labels, objects: NDArray[Any]) -> NDArray[np.intp]:
        """The class of each object by its id: that of most of its pixels, boundaries apart."""
        count = int(objects.max(initial=0)) + 1
        inside = (objects > 0) & (labels != NODATA)
        pairs = objects[inside].astype(np.int64) * len(self.names) + labels[inside]
        table = np.bincount(pairs, minlength=count * len(self.names)).reshape(count, len(self.names))
        if self.boundary is not None:
            table[:, self.boundary] = 0
            table[table.sum(1) == 0, self.objects[:1]] = 1  # nothing but boundary
        return np.asarray(table.argmax(1))

    def include(self, other: "Scorer") -> None:
        """Count all that another scorer of the same classes has counted."""
        for name, counts in other.blocks.items():
            _add(self.blocks, name, counts)
        for name, outlines in other.outlines.items():
            _add(self.outlines, name, outlines)
        for one in self.objects:
            self.foreground[one] += other.foreground[one]
            self.matches[one] += other.matches[one]
        self.reliability += other.reliability
        self.calibrated |= other.calibrated

    @property
    def counts(self) -> Counts:
        """(K, K) over all blocks."""
        none = np.zeros((len(self.names), len(self.names)), np.int64)
        return sum(self.blocks.values(), none)

    def result(self) -> dict[str, Any]:
        """Scores of everything so far, as JSON takes them; None where a score is 0/0.

        What `models.metrics.scores` says of the pooled pixels, and `confusion`; `boundary_f1` by class name;
        `objects` by the name of each object class: `iou` and `f1` of its pixels (boundary pixels are of it, on both
        sides), `ap50` (mean over images), and over all images together `tp`, `fp`, `fn` and `ap50_pooled`; `ece`
        where confidences were given; and in `intervals` the 95 % intervals, by drawing from the `blocks` of labelled
        ground, of `mean_iou`, `iou`, `boundary_f1` and `ap50`: None for what occurs in fewer than two of them.
        """
        result = scores(self.counts, self.names)
        result |= {"confusion": self.counts.tolist(), "boundary_f1": self._named(boundaries.f1(self._contours.sum(0)))}
        result |= {"blocks": sum(bool(each.any()) for each in self.blocks.values()), "intervals": self._intervals()}
        if self.objects:
            result["objects"] = {self.names[one]: self._found(one) for one in self.objects}
        if self.calibrated:
            result["ece"] = self.reliability.ece
        return result

    @property
    def _contours(self) -> NDArray[np.int64]:
        """(B, K, 4)."""
        return np.array(list(self.outlines.values()), np.int64).reshape(-1, len(self.names), 4)

    def _named(self, values: NDArray[np.float64]) -> dict[str, float | None]:
        return {name: _number(value) for name, value in zip(self.names, values, strict=True)}

    def _found(self, one: int) -> dict[str, Any]:
        matches = [found for _, found in self.matches[one]]
        hit, true, predicted = self.foreground[one].tolist()
        union, total = true + predicted - hit, true + predicted
        pixels = {"iou": hit / union if union else None, "f1": 2 * hit / total if total else None}
        together = sum(matches, Matches(0, 0, 0))
        return {**pixels, "ap50": ap50(matches), "ap50_pooled": together.score, **asdict(together)}

    def _intervals(self) -> dict[str, Any]:
        counts = np.array(list(self.blocks.values()), np.int64).reshape(-1, len(self.names), len(self.names))
        both = bootstrap.intervals(counts, lambda c: np.column_stack([bootstrap.mean_iou(c), bootstrap.iou(c)]))
        outlines = bootstrap.intervals(self._contours, boundaries.f1)
        result = {"mean_iou": _ends(both[:, 0]), "iou": self._ends_by_name(both[:, 1:])}
        result["boundary_f1"] = self._ends_by_name(outlines)
        if self.objects:
            result["ap50"] = {self.names[one]: self._ap50_ends(one) for one in self.objects}
        return result

    def _ends_by_name(self, ends: NDArray[np.float64]) -> dict[str, list[float] | None]:
        return {name: _ends(pair) for name, pair in zip(self.names, ends.T, strict=True)}

    def _ap50_ends(self, one: int) -> list[float] | None:
        """From the sum of scores and the number of images of each block."""
        blocks: dict[str, NDArray[np.float64]] = {}
        for name, found in self.matches[one]:
            if (score := found.score) is not None:
                _add(blocks, name, np.array([score, 1.0]))
        sums = np.array(list(blocks.values())).reshape(-1, 2)
        return _ends(bootstrap.intervals(sums, _ratio))


def _ratio(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):
        return np.asarray(sums[..., 0] / sums[..., 1])


def _add(sums: dict[str, Any], name: str, counts: NDArray[Any]) -> None:
    sums[name] = sums[name] + counts if name in sums else counts


def _ends(pair: NDArray[np.float64]) -> list[float] | None:
    return None if np.isnan(pair).any() else [float(end) for end in pair]


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
