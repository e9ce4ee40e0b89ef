"""The training pipeline: compress a Stable Diffusion U-Net, distil it twice, evaluate and ship it."""
