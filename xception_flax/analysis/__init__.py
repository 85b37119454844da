"""Looking at a network: tables, drawings, and what its programs cost on TPU slices."""
