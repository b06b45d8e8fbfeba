"""Who takes part, and how does each open its store and hand over one epoch of batches?"""
