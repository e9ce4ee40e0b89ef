"""What each precision of each layer costs in error at the network's output, measured on real weights."""
