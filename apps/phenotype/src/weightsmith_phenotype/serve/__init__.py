"""The page and the REST interface: tag a note, correct what was found, export it, see the genes and diseases.

The server answers only on 127.0.0.1, loads nothing from elsewhere, and keeps no text: neither on disk nor in a log.
"""

try:
    from weightsmith.core.web import HOST, Limits, listen, run
    from weightsmith_phenotype.serve.app import create_app
    from weightsmith_phenotype.serve.insight import Insight
except ImportError as error:
    from weightsmith.core.errors import MissingDependencyError

    raise MissingDependencyError(
        "the page of weightsmith-phenotype",
        found=f"no package {error.name!r}",
        expected="fastapi, uvicorn and python-multipart",
        do="Install them with `pip install 'weightsmith-phenotype[serve]'`.",
    ) from error

__all__ = ["HOST", "Insight", "Limits", "create_app", "listen", "run"]
