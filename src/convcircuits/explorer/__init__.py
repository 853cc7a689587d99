"""The explorer: a page in the browser to look at a model's units, find their circuits, and keep notes.

Two processes. The server never imports torch: ``server`` listens, ``security`` stands before everything, ``routes`` are
the API and ``schemas`` its values, ``session`` looks up what a route asks for, ``jobs`` keeps the queue and the worker,
``bundle`` packs what is shared. The worker holds the model: ``worker`` is its process, ``materials`` the model and the
photographs, ``questions`` what it answers at once, ``tasks`` what jobs do (``circuit_tasks``, ``unit_tasks``) with a
``project``, and ``index`` what drives every unit. ``store`` is the project's folder, which both use, with its
``circuit_file`` and ``layer_file``. ``launch`` starts all this.
"""
