# ruff: noqa: INP001  Sphinx's configuration, not a package
"""The documentation as a site: `make docs`. Its pages are the Markdown of the repository, which reads well there, too."""

from anomalyd import __version__

project = "anomalyd"
release = version = __version__
extensions = ["myst_parser", "sphinx_copybutton"]
root_doc = "docs/index"
# The source is the whole repository, so that links between docs/ and what lies beside it lead somewhere.
include_patterns = ["*.md", "docs/**", "configs/*.md", "deploy/helm/anomalyd/README.md"]
exclude_patterns = ["**/*.py", "docs/pictures/**"]
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
highlight_language = "text"
html_theme = "furo"
html_title = "anomalyd"
html_copy_source = False
html_extra_path = ["site"]  # the way from the site's root to its first page
copybutton_prompt_text = "$ "
