"""Plain data: features, tables by layer, scores, circuits, figures, and the provenance that files may hold."""
