"""What goes into a model: its processor, images, and questions that are fit for it; `chat.py` puts them together."""
