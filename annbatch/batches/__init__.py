"""How is the memory of a window's batches laid out, filled and labelled?

In the order in which a window is made:

1. `casts` chooses the type of the values.
2. `filling` says what parts are, and holds what they share. `csr_memory` takes memory for CSR batches.
3. `sparse_on_host` and `dense_on_host` make batches in host memory; `picked_rows` keeps only the wanted genes. `exact`
   checks integers that become float32, `value_kernels` normalises or binarises values.
4. `on_device` makes batches in the memory of a device, to which rows are copied in narrow types.
   `unpacked_on_device` and `decoded_on_device` let the device also decode packed chunks, or zstd; `device_decoding`
   chooses between them.
5. `label_rows` reads the labels of a window's rows; `label_kernels` gathers them in one call.

`annbatch.fetch` drives `SparsePart`, `DensePart`, the parts on a device, and `LabelReader`.
"""
