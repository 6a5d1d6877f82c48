"""The machine on a GPU, where the logits are: a step is one launch, and nothing waits for the device.

`tables` lays a compiled program out in a device's memory; `slots`, `sequences` and `edits` are what the three kinds of host
hand over. The kernels are in `kernel`; what they call (`layout`, `machine`, `decide`, `edit`) follows `csrc/` file by file.
"""
