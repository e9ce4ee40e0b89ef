"""Every decision: layouts, engines, pieces, segments and tile counts, residency, SRAM addresses, bounds."""
