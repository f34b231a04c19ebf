"""The exception tree: every error that a user can cause or mend.

    WidefieldError              exit 1
    ├── UsageError              exit 2: nothing was started
    │   ├── BundleError         missing, incomplete, or a byte has changed
    │   ├── RegistryError       missing, damaged, or does not hold what it is asked for
    │   │   └── ConflictError   somebody else has changed it meanwhile
    │   ├── WeightsError        public weights that cannot be had or read, or are of another network
    │   └── OutputError         output folder not writable, locked by a living run, two scenes with one output
    ├── SceneError              this scene cannot be segmented; others go on
    │   ├── UnreadableError     missing, not an image, truncated, of a type that is not supported
    │   ├── RefusedError        what the source policy does not allow: nothing of it was opened
    │   ├── PlanError           bands, type, resolution, memory or disk do not fit: the numbers and the way out
    │   │   └── SpaceError      the free disk is too small just now
    │   └── IncompleteError     some blocks failed: nothing was published, a rerun tries only those
    ├── ProbeError              a network cannot be tiled: its halo does not converge, or no tile fits
    ├── EngineError             no engine can be built or loaded, or it failed its parity gate
    ├── TrainingError           no chips, a non-finite loss
    ├── LabelError              labels that do not fit their scenes
    └── VerifyError             stored results do not agree with their records

Foreign exceptions (rasterio, zarr, fsspec, OSError) become these where a scene is opened or read, and nowhere else.
"""

from models.errors import (
    BundleError,
    ConflictError,
    EngineError,
    RegistryError,
    TrainingError,
    UsageError,
    WeightsError,
    WidefieldError,
)

__all__ = [
    "BundleError",
    "ConflictError",
    "EngineError",
    "IncompleteError",
    "LabelError",
    "OutputError",
    "PlanError",
    "ProbeError",
    "RefusedError",
    "RegistryError",
    "SceneError",
    "SpaceError",
    "TrainingError",
    "UnreadableError",
    "UsageError",
    "VerifyError",
    "WeightsError",
    "WidefieldError",
]


class OutputError(UsageError):
    """The output folder cannot be written, or somebody else is writing it."""


class SceneError(WidefieldError):
    """A scene cannot be segmented."""


class UnreadableError(SceneError):
    """A scene is missing, not an image, truncated, or of a kind that is not supported."""


class RefusedError(SceneError):
    """The source policy does not allow to open this: where it lies, what it is, or how large it claims to be."""


class PlanError(SceneError):
    """A scene and a bundle, or this machine, do not fit together."""


class SpaceError(PlanError):
    """The free disk is too small just now; with other scenes in flight, it may be larger once they have ended."""


class ProbeError(WidefieldError):
    """A network cannot be tiled, or not within the memory that it may take."""


class LabelError(WidefieldError):
    """Labels are missing, of another place, or of another class table."""


class IncompleteError(SceneError):
    """Some blocks failed: nothing was published, and a rerun tries only those."""


class VerifyError(WidefieldError):
    """Stored results do not agree with their records."""
