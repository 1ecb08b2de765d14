"""What apps, integrations and evaluation share: loading models, measuring, parsing and formatting."""
