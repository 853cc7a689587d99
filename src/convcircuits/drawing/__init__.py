"""The circuit diagram: its document, and the hosts that show it."""
