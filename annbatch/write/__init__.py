"""How does a collection come to be?

In the order in which a build goes:

1. `create`, `append`, `reshuffle`: the public functions, their options and defaults.
2. `options`: what a caller may choose, and whether it is in range; `array_layout`: how arrays are cut and compressed.
3. `build`: the recipe, which reads as such; `described_inputs`: what all inputs hold; `manifest_records`: what the
   manifest says of types and inputs; `interruption`: how a build stops; `build_modalities`: the recipe for inputs with
   several modalities.
4. `inputs`: what can be an input, and how it is read.
5. `shuffle`: how rows get into their final order, out of core; `passes`: who does that work.
6. `output`: how ordered rows become stores that appear all at once.

Other rooms take these three functions; `annbatch.verify` also reads matrices as builds do.
"""

from annbatch.write.append import append_to_collection
from annbatch.write.create import create_anndata_collection
from annbatch.write.reshuffle import reshuffle_collection

__all__ = ["append_to_collection", "create_anndata_collection", "reshuffle_collection"]
