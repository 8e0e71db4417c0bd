"""Look at what training does: the loss landscape, the similarity of representations, the optimizer's own numbers."""
