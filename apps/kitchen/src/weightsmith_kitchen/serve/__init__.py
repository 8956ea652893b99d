"""The page and the REST interface: a photo or a recipe to a meal kit that is corrected, scaled and exported.

The server answers only on 127.0.0.1, loads nothing from elsewhere, and keeps no photo and no text: neither on disk nor
in a log. It holds no state: the page sends the kit with each correction.
"""

try:
    from weightsmith.core.web import HOST, Limits, listen, run
    from weightsmith_kitchen.serve.app import create_app
except ImportError as error:
    from weightsmith.core.errors import MissingDependencyError

    raise MissingDependencyError(
        "the page of weightsmith-kitchen",
        found=f"no package {error.name!r}",
        expected="fastapi, uvicorn and python-multipart",
        do="Install them with `pip install 'weightsmith-kitchen[serve]'`.",
    ) from error

__all__ = ["HOST", "Limits", "create_app", "listen", "run"]
