"""What the default view of a diagram has room for; circuits that are to be drawn whole are no larger."""

FILTERS = 12
"""The most filters of a column, so the most live filters of a layer."""

FAN_IN = 6
"""The most kernels into a filter."""
