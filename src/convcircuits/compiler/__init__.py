"""A circuit as a small module of its own: cut, written, interpreted, saved and measured."""
