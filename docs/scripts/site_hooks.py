"""Hooks of mkdocs: what the pages link to outside docs/ becomes part of the site.

Pages are written for a repository, where ``../examples/train.py`` is a file. Here each example is a page of its own,
and so are the changelog and the page for contributors; other files are copied. Links are turned to them.
"""

import ast
import posixpath
import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pymdownx.slugs import slugify

PAGES = ("CONTRIBUTING.md", "CHANGELOG.md")
LINK = re.compile(r"(?<=\]\()([^)#\s]+)(?=[)#])")
OUTSIDE = re.compile(r"\]\(\.\./((?:\.\./)*(?:benchmarks/[^)#\s]+|examples/[^)#\s]+\.ipynb))\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Anchors are those that a repository's pages have."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = slugify(case="lower")
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside docs/ that pages show or link to."""
    root = Path(config.config_file_path).parent
    for name in PAGES:
        files.append(File.generated(config, name, content=(root / name).read_text()))
    for script in sorted((root / "examples").glob("*.py")):
        files.append(File.generated(config, f"examples/{script.stem}.md", content=_example(script)))
    linked = {
        name for file in list(files) if file.is_documentation_page() for name in OUTSIDE.findall(file.content_string)
    }
    for name in sorted(linked):
        files.append(File.generated(config, name, abs_src_path=str(root / name)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Turn links between files of the repository into links between pages of the site."""
    here = page.file.src_uri

    def turned(match: re.Match[str]) -> str:
        link = match[1]
        if ":" in link:
            return link
        origin = here if here in PAGES else f"docs/{here}"
        target = posixpath.normpath(posixpath.join(posixpath.dirname(origin), link)).removeprefix("docs/")
        if target.startswith("examples/") and target.endswith(".py"):
            target = str(PurePosixPath(target).with_suffix(".md"))
        return posixpath.relpath(target, posixpath.dirname(here) or ".")

    return LINK.sub(turned, markdown)


def on_post_page(output: str, **_: object) -> str:
    """Name the search dialog, which the theme leaves without a name for screen readers."""
    dialog = 'data-md-component="search" role="dialog"'
    return output.replace(dialog, f'{dialog} aria-label="Search"')


def _example(script: Path) -> str:
    source = script.read_text()
    docstring = ast.get_docstring(ast.parse(source)) or ""
    title = docstring.partition("\n")[0].rstrip(".")
    return f"# {title}\n\n`examples/{script.name}`:\n\n```python\n{source}```\n"
