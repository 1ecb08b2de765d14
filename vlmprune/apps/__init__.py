"""What people run: the command line, and the page of the demo."""
