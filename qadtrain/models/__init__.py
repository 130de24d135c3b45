"""Detectors: one registry, one output type."""

from qadtrain.models.base import ModelOutput, TappedModel
from qadtrain.models.registry import ModelCard, build_model, describe, register

__all__ = ["ModelCard", "ModelOutput", "TappedModel", "build_model", "describe", "register"]
