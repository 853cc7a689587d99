"""The explorer: a page in the browser to look at a model's units, find their circuits, and keep notes.

Two processes: ``server`` answers the page and never imports torch, and the ``worker`` holds the model. ``security``
stands before the server, ``jobs`` is what it knows of the worker, ``store`` is the project's folder, ``index`` what
drives every unit, and ``schemas`` the API. ``launch`` starts all this from Python.
"""
