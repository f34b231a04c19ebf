"""The exceptions that users meet, as far as models raise them (`pipeline.errors` draws the whole tree)."""


class WidefieldError(Exception):
    """Anything that a user can cause or mend: one line that says what, why and the way out."""

    exit_code = 1
    """Exit status of the command line: 1 some scene failed, 2 nothing was started."""


class UsageError(WidefieldError):
    """An argument, a bundle or an output folder is unusable: nothing was started."""

    exit_code = 2


class BundleError(UsageError):
    """A bundle is missing, incomplete, of another schema, or a byte of it has changed."""


class WeightsError(UsageError):
    """Public weights cannot be had or read, or are not of this network."""


class TrainingError(WidefieldError):
    """Training cannot start or go on: no chips, a non-finite loss."""


class EngineError(WidefieldError):
    """No engine can be built or loaded here, or an engine failed its parity gate."""


class UnavailableError(EngineError):
    """This machine lacks what an engine needs: a library, a GPU, a precision."""


class RegistryError(UsageError):
    """A registry is missing, damaged, of another schema, or does not hold what it is asked for."""


class ConflictError(RegistryError):
    """Somebody else has changed the registry since it was looked at: nothing was written."""
