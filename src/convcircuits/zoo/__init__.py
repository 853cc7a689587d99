"""Models by name with their preprocessing, and photographs.

``models`` loads; ``sources`` is where models come from, ``weights`` how theirs are read, ``packages`` how what they
need is installed; ``preprocessing`` turns pictures into inputs; ``layers`` lists where features can be; ``images``
finds photographs, splits them and cuts them into inputs.
"""
