"""The machine where the logits are: on a GPU a step is one launch, and nothing waits for the device.

The kernels are csrc/guard.cu, which is the host's own C. `steps` mirrors csrc/guard.h; `tables` lays a program out in a
device's memory; `slots`, `sequences` and `edits` are what the three kinds of host hand over. `images` holds the compiled
kernels, `launch` starts them, `kernels` finds out once for each device whether they run there, and `proof` whether they do
what the host does; where not, `host_slots` and the hosts' own CPU paths do the work.
"""
