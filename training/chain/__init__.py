"""The data chain: from pictures with captions to a curated training set, each variant a folder with its lineage.

record   what is known of one picture             log       append-only lines that survive a kill
variant  a folder: manifest, pictures, listing    stream    batches over processes, in order
pictures reading files that may be hostile        step      one variant to the next
make, dedup, filter, crop, recaption, synth, curate, union: the steps; stats: what a variant holds
"""
