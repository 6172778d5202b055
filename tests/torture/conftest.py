"""The processes of the system tests serve here too."""

from system.conftest import model, model_process, qdrant_process

__all__ = ["model", "model_process", "qdrant_process"]
