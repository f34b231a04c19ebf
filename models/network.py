"""The network that a spec describes."""

from typing import Any

from models.classifier import Classifier, create_classifier
from models.segmenter import Segmenter, create_segmenter
from models.spec import ModelSpec


def network_from_spec(spec: ModelSpec) -> Segmenter | Classifier:
    """A segmenter, or a classifier of patches, with the default initialisation of its layers.

    Raises:
        ValueError: there is no such network.
    """
    plan, bands, classes = spec.architecture, len(spec.bands), len(spec.classes)
    variant: dict[str, Any] = dict(plan.variant)
    if plan.decoder is None:
        return create_classifier(
            plan.encoder, classes=classes, bands=bands, padding=plan.padding, width=plan.width, **variant
        )
    return create_segmenter(
        plan.encoder,
        classes,
        decoder=plan.decoder,
        bands=bands,
        width=plan.width,
        padding=plan.padding,
        decoder_channels=plan.decoder_channels,
        output_stride=plan.output_stride,
        **variant,
    )
