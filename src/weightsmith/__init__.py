"""weightsmith: everything you do to a trained network's weights.

A folder is a verb (``predict``, ``sparsify``, ...), a file is a method. Import what you need::

    from weightsmith.sparsify import dsnot
    from weightsmith.predict import know

Importing the package itself loads no heavy dependency.
"""

__version__ = "0.2.0"
