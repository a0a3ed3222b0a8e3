"""Adds to the site what is generated: methods, notebooks and the reference."""

import os
import pathlib
import re

# What computes in notebooks and figures, unless the caller has chosen.
os.environ.setdefault("KERAS_BACKEND", "jax")

from mkdocs import utils  # noqa: E402
from mkdocs.structure.files import File  # noqa: E402
from site_generator import method_pages  # noqa: E402
from site_generator import notebooks  # noqa: E402
from site_generator import readme  # noqa: E402
from site_generator import reference  # noqa: E402

_HERE = pathlib.Path(__file__).parent
_PICTURES = _HERE.parent / ".github"
# In the order of the site.
_NOTEBOOKS = {
    "regression": "Plasticity lost and kept",
    "drifting_data": "A Keras application on drifting data",
    "comparison": "Comparing methods with intervals",
}
# Pages where the name of a method means the method.
_NAMING_METHODS = ("guides/choosing", "guides/when-not", "methods/")
# A name in the text, or what has none that is to be linked.
_LINKABLE = re.compile(
    r"<a\b.*?</a>|<pre\b.*?</pre>|<h\d\b.*?</h\d>|<code>([\w.]+)</code>",
    re.DOTALL,
)


def on_config(config):
    """Fills in the navigation."""
    generated = {
        "Notebooks": [
            {title: f"notebooks/{name}.md"}
            for name, title in _NOTEBOOKS.items()
        ],
        "Methods": method_pages.navigation(),
        "API reference": reference.navigation(),
    }
    for entry in config.nav:
        for title in entry.keys() & generated.keys():
            entry[title] = generated[title]
    return config


def on_files(files, config):
    """Adds the pages, and the pictures that README has, too."""
    pages = {**method_pages.pages(), **readme.pages(), **reference.pages()}
    for name in _NOTEBOOKS:
        text, pictures = notebooks.convert(
            _HERE / "notebooks" / f"{name}.py",
            config.extra["execute_notebooks"],
        )
        pages[f"notebooks/{name}.md"] = text
        for picture, data in pictures.items():
            path = f"notebooks/{name}/{picture}"
            files.append(File.generated(config, path, content=data))
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    for picture in sorted(_PICTURES.glob("*.png")):
        path = f"assets/{picture.name}"
        files.append(File.generated(config, path, abs_src_path=str(picture)))
    return files


def on_page_content(content, page, config, files):
    """Links the names of the library to their pages, and more of the kind."""
    page_of = reference.page_of_each_name()
    if page.file.src_uri.startswith(_NAMING_METHODS):
        page_of |= method_pages.page_of_each_name()

    def link(match):
        name = match[1]
        if name is None:
            return match[0]
        target = page_of.get(name.removeprefix("keras_plasticity."))
        if target is None or target == page.file.src_uri:
            return match[0]
        url = files.get_file_from_path(target).url
        return (
            f'<a href="{utils.get_relative_url(url, page.url)}">{match[0]}</a>'
        )

    # A number stays with its error.
    return _LINKABLE.sub(link, content).replace(" ± ", "&nbsp;±&nbsp;")
