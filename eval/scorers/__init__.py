"""Official scorers as pure functions: an answer and its truth in, a number or a reading out; no model, no file."""
