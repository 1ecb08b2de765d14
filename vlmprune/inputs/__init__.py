"""What goes into a model: its processor, and questions that are fit for it."""

from .placeholders import check_conversation, check_question
from .processor import load_processor

__all__ = ["check_conversation", "check_question", "load_processor"]
