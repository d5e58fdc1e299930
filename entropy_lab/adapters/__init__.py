"""The probe on training that is not ours: one module per trainer, imported by nobody here."""
