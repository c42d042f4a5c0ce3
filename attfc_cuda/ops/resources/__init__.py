"""What the GPU kernels compile to: registers, spills, shared memory; with or without a GPU. `attfc kernels`."""
