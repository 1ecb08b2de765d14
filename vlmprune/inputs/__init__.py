"""Inputs of a model: its processor, and checks of images and questions."""

from .placeholders import check_conversation, check_question
from .processor import load_processor

__all__ = ["check_conversation", "check_question", "load_processor"]
