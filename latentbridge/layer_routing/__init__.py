"""Language models whose layers, or tokens layer by layer, read by gated delta or by softmax."""
