"""How does a collection come to be?

`annbatch.write.create` reads as the recipe; every other module here is one of its steps.
"""

from annbatch.write.create import create_anndata_collection

__all__ = ["create_anndata_collection"]
