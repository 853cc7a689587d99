"""What filters respond to: receptive fields, the interior, patches, feature visualizations, colors."""
