"""How is the memory of a window's batches laid out, filled and labelled?

In the order in which a window is made:

1. `casts`: the type of the values. `on_host`: sparse and dense matrices in host memory; `exact` looks at integers that
   come as float32, `value_kernels` normalises or binarises values.
2. `on_device`: the same in the memory of a device, copied there in narrow types and widened.
3. `unpacked_on_device`, `decoded_on_device`: the same, where the device also decodes packed chunks, or zstd;
   `device_decoding` chooses.
4. `label_rows`: the labels of a window's rows; `label_kernels` gathers them in one call.

Other rooms take `SparsePart`, `DensePart` and their kin on a device, and `LabelReader`: `annbatch.fetch` asks each to
plan, to say what has to be read, and to give its share of every batch.
"""
