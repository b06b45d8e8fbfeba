"""What is asked of a GPU?

In the order in which a window gets there:

1. `cuda`: a device, its streams and kernels. Only this module imports CuPy; the kernels are in ``kernels.cu``.
2. `window_memory`: which memory of the device a window lies in, and when it may be written again.
3. `stored_chunks`: how stored chunks get into page-locked memory, to be decoded on the device; `packed_blocks`: how
   blocks of packed ones do.
4. `nvcomp`: how nvCOMP decodes zstd; packed blocks are unpacked by a kernel.

Other rooms take the protocols `Device`, `Stream` and `Event`, `open_device`, and `WindowMemoryPool`. The tests have a
device of their own behind the same protocols.
"""
