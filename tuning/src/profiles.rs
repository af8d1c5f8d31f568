//! Named sets of knobs.
