"""Plan (pure) and run (effects, resumable run record)."""
