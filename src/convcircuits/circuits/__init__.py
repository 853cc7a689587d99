"""Find, measure, compare and control circuits."""
