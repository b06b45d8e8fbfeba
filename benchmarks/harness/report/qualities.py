"""Which tables show how random batches are, and what a process holds?"""

from __future__ import annotations

from harness.report.markdown import Record, middle, table


def randomness_table(record: Record) -> str:
    """Entropies and accuracies, a line for each setting."""
    lines = []
    for row in record["rows"]:
        accuracy = row["accuracy"]
        half = (max(accuracy) - min(accuracy)) / 2
        shares = [f"{middle(values):.3f}" for values in row["entropy_share"].values()]
        setting = f"{row['window_rows']:,}", f"{row['chunk_size']:,}"
        lines.append((row["collection"], *setting, *shares, f"{middle(accuracy):.3f} ± {half:.3f}"))
    names = ("entropy of cell types", "of plates", "of source files")
    return table(("collection", "window", "block", *names, "accuracy"), lines)


def mixing_table(record: Record) -> str:
    """Entropy of the parts in a batch."""
    lines = [
        (row["setting"], f"{row['entropy_bits']:.4f} bits", f"{row['random_entropy_bits']:.4f} bits")
        for row in record["rows"]
    ]
    return table(("collection", "batches of the loader", "batches drawn at random"), lines)


def soak_table(record: Record) -> str:
    """What each process did, and what its memory, descriptors and threads did meanwhile."""
    lines = []
    for row in record["rows"]:
        memory, *others = (row["growth"][key] for key in ("rss_bytes", "descriptors", "threads"))
        lines.append(
            (
                row["process"],
                f"{row['whole']:,}",
                f"{row['left_early']:,}",
                f"{memory['median'] / 2**20:,.0f} MiB, at most {memory['largest'] / 2**20:,.0f}",
                f"{memory['per_hour'] / 2**20:+,.1f} MiB",
                *(f"{one['median']:,.0f}, at most {one['largest']:,} ({one['per_hour']:+.1f})" for one in others),
                "yes" if row["ended"] == 0 and all(one["flat"] for one in (memory, *others)) else "no",
            )
        )
    growing = "(and an hour)"
    head = (
        *("", "whole epochs, or builds", "left early", "resident memory", "an hour"),
        *(f"descriptors {growing}", f"threads {growing}", "flat"),
    )
    return table(head, lines)
