"""Data alone: features, tables by layer, scores, circuits, figures, and what a file may say of their origin."""
