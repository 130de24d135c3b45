"""Detectors: one registry, one output type."""

from qadtrain.models.base import ModelOutput, TappedModel
from qadtrain.models.registry import build_model, register

__all__ = ["ModelOutput", "TappedModel", "build_model", "register"]
