"""The network that a spec describes."""

from typing import Any

from models.classifier import Classifier, create_classifier
from models.inception.family import check_variant
from models.segmenter import Segmenter, create_segmenter
from models.spec import ModelSpec


def network_from_spec(spec: ModelSpec, *, aux: bool = False) -> Segmenter | Classifier:
    """A segmenter, or a classifier of patches, with the default initialisation of its layers.

    `aux` adds the auxiliary heads that only the training of a classifier has.

    Raises:
        ValueError: there is no such network.
        BundleError: the network was not trained here.
    """
    plan, bands, classes = spec.trained, len(spec.bands), len(spec.classes)
    variant: dict[str, Any] = dict(plan.variant)
    check_variant(plan.encoder, variant)
    if plan.decoder is None:
        return create_classifier(
            plan.encoder, classes=classes, bands=bands, padding=plan.padding, width=plan.width, aux=aux, **variant
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
