"""Reading attention beside the unchanged fused call."""
