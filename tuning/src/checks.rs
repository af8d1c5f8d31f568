//! What on this host costs latency.
