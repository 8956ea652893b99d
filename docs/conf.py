"""Sphinx configuration: everything is built from the working tree, offline."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import generate

from weightsmith import __version__

generate.write()

project = "weightsmith"
author = "The weightsmith developers"
copyright = "the weightsmith developers"
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
    "mathml",
]
exclude_patterns = ["_build", "gallery/**/*.ipynb"]
suppress_warnings = ["config.cache"]

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_typehints = "none"
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"plot_",
    "download_all_examples": False,
    "remove_config_comments": True,
    "plot_gallery": "True",
    "show_memory": False,
    "write_computation_times": False,  # its page loads scripts from a CDN
}

html_math_renderer = "mathml"
html_theme = "pydata_sphinx_theme"
html_title = "weightsmith"
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["weightsmith.css"]
html_sidebars = {page: [] for page in ("index", "getting-started", "which-one", "recipes", "claims", "benchmarks")}
templates_path = ["_templates"]
html_theme_options = {
    "show_prev_next": False,
    "navigation_with_keys": False,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "friendly",
    "pygments_dark_style": "monokai",
}


def skip(app: Any, what: str, name: str, member: Any, skipped: bool, options: Any) -> bool | None:
    """Leave out what scikit-learn adds to estimators, aliases of types, and on a verb's page the classes of core."""
    of_core = isinstance(member, type) and member.__module__.startswith("weightsmith.core.")
    elsewhere = of_core and not app.env.docname.startswith("api/weightsmith.core")
    added = re.fullmatch(r"set_\w+_request", name) or isinstance(member, types.GenericAlias)
    return True if added or elsewhere else None


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-skip-member", skip)
