"""The data flow, pure and model-free; read `locate`, `score`, `select`, `compact` in this order."""
