"""Circuits of all units of a layer, in a folder, and what they share."""
