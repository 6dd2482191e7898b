"""Tables and figures of the publication, run again: presets, claims and their verdicts, pages that show them."""
