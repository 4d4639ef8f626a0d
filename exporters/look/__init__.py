"""Compare images by look: fingerprints, twins (near-duplicates), groups of twins, and a cache of fingerprints."""
