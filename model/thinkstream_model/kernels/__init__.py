"""Triton kernels, one idea a file, each beside the plain torch it stands for.

Those in Gluon, for Hopper, stand for a kernel in Triton, whose bits they give.

Each keeps the promise of the whole: a row's result depends on that row alone, bit for bit, whatever it is
batched with and whether it comes in a prefill or a decode. So the order of every sum is fixed: split
factors never follow the batch, and sums along a row go through the tensor cores, whose order is that of
the columns, or through one kernel that all rows share.
"""
