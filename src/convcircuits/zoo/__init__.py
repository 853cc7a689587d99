"""Models by name with their preprocessing, and photographs."""
