"""Which images a feature answers to by which circuit, and whether one unit is several mechanisms."""
