"""Models by name with their preprocessing, photographs, and networks with a planted circuit.

``models`` loads models. ``specs`` reads their names, and ``sources`` knows where they come from; ``packaged`` builds
those whose weights come in packages, ``weights`` reads weights, and ``packages`` says how to install what they need.
``preprocessing`` turns pictures into inputs, and ``layers`` lists the layers that can carry a feature. ``images`` finds
photographs, splits them and cuts them into inputs; ``rcc`` reads the bundles that some of them are in. ``planted``
makes small networks whose circuits are known.
"""
