"""What runs on the login node: no torch, no pandas, an answer in under half a second."""
