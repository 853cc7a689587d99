"""Find, measure, run and draw the sparse circuit of kernels that computes one feature of a CNN."""

__version__ = "0.1.0"
