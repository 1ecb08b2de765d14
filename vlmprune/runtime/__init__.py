"""Running the flow inside the forwards of one wrapped model."""
