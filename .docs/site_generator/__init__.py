"""What of the site is generated, not written: methods, notebooks, reference.

The modules return Markdown and know nothing of the site's generator; `hooks.py`
hands it over.
"""
