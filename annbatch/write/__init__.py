"""How does a collection come to be?

`annbatch.write.build` reads as the recipe; every other module here is one of its steps.
"""

from annbatch.write.create import append_to_collection, create_anndata_collection, reshuffle_collection

__all__ = ["append_to_collection", "create_anndata_collection", "reshuffle_collection"]
