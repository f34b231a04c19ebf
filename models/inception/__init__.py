"""The Inception family as encoders."""

from models.inception.v1 import ENCODERS, create_encoder

__all__ = ["ENCODERS", "create_encoder"]
