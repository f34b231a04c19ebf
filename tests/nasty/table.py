"""docs/nasty.md: what became of every file, by archive and by cause."""

import re
from collections import Counter

from tests.nasty.cases import ARCHIVES
from tests.nasty.watch import MEMORY, SECONDS

CAUSES = (
    ("pixel type not supported", r"has pixels of"),
    ("more bands than allowed", r"bands, at most"),
    ("a block larger than memory allows", r"has blocks of|block size|strip size"),
    ("more pixels or blocks than GDAL or the policy allows", r"Too many blocks|Too large image size|--max-pixels"),
    ("codec that this build of GDAL lacks", r"missing codec"),
    ("something else than its name says", r"is not a|its name does not say so"),
    ("shorter than its blocks claim", r"is truncated or corrupt"),
    ("pixels truncated or corrupt", r"cannot be read at"),
    ("georeference that places nothing", r"RPCs"),
    ("header truncated or corrupt", r"cannot be opened"),
)
"""Cause, and what its messages say; the first that fits counts."""

HEAD = """# The nasty archive

877 files from the test suites of GDAL, image-tiff and rasterio: truncated and corrupt ones, fuzz cases, decompression
bombs, odd codecs, odd georeferences. Each is judged in a process of its own ({seconds} s, {memory} GiB). Either it is
segmented by the whole job, with a small bundle of its own type and bands, and its mask agrees with what rasterio reads:
shape, CRS, transform, GCPs, RPCs, pixel-is-point, and pixel for pixel `valid in = classified out`. Or it is refused
with a `SceneError` that names the cause. Anything else is a fault. Of a scene of more than 2^25 pixels, the last corner
is segmented ("in part").

```bash
make test-nasty   # writes this page
```

"""


def cause(reason):
    """Why a file was refused, in one of a few words; None for a reason that says nothing."""
    return next((name for name, pattern in CAUSES if re.search(pattern, reason)), None)


def page(cases, outcomes):
    """The whole page, Markdown."""
    by_path = {outcome.path: outcome for outcome in outcomes}
    pairs = [(case, by_path[case.path]) for case in cases]
    head = HEAD.format(seconds=SECONDS, memory=MEMORY >> 30)
    return head + "\n".join([_by_archive(pairs), _by_cause(pairs), _against_rasterio(pairs), _faults(pairs)])


def _by_archive(pairs):
    rows = []
    for archive in (*ARCHIVES, "all"):
        chosen = [outcome for case, outcome in pairs if archive in {case.archive, "all"}]
        counts = Counter(outcome.status for outcome in chosen)
        slowest, largest = max((o.seconds for o in chosen), default=0), max((o.peak for o in chosen), default=0)
        row = [archive, len(chosen), *(counts[status] for status in ("segmented", "in part", "refused", "fault"))]
        rows.append([*row, f"{slowest:.1f} s", f"{largest >> 20} MiB"])
    head = ["archive", "files", "segmented", "in part", "refused", "faults", "slowest", "largest memory"]
    return table(head, rows)


def _by_cause(pairs):
    rows = []
    for name in [name for name, _ in CAUSES]:
        found = [case for case, outcome in pairs if outcome.status == "refused" and cause(outcome.reason) == name]
        counts = [sum(case.archive == archive for case in found) for archive in ARCHIVES]
        readable = sum(case.readable for case in found)
        rows.append([name, *counts, len(found), readable])
    head = ["refused because of", *ARCHIVES, "all", "of these, rasterio reads"]
    return table(head, [row for row in rows if row[-2]])


def _against_rasterio(pairs):
    lines = [
        "rasterio 1.4.4 reads these all the same; they are refused for what is said of them:",
        "",
        *_lines(pairs, lambda case, outcome: case.readable and cause(outcome.reason) != CAUSES[0][0]),
    ]
    return "\n".join(lines) + "\n" if len(lines) > 2 else ""


def _lines(pairs, wanted):
    chosen = [(case, outcome) for case, outcome in pairs if outcome.status == "refused" and wanted(case, outcome)]
    return [f"- `{case.path}`: {_short(outcome.reason)}" for case, outcome in chosen]


def _faults(pairs):
    lines = [f"- `{case.path}`: {_short(outcome.reason)}" for case, outcome in pairs if outcome.status == "fault"]
    return "\n".join(["Faults:", "", *lines]) + "\n" if lines else "No faults.\n"


def _short(reason):
    return re.sub(r"\S*/(\S+)", r"\1", " ".join(reason.split()))[:200].replace("|", "/")


def table(head, rows):
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *([str(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
