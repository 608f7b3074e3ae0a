"""Attention transfer that people can run: the package behind the book.

Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017 (arXiv 1612.03928).
Import from the modules, e.g. ``from atbook.losses import attention_transfer``.
"""

__version__ = "0.1.0"
