"""The Inception family as encoders."""

from models.inception.family import ENCODERS, create_encoder

__all__ = ["ENCODERS", "create_encoder"]
