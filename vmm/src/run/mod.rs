//! The threads that drive a machine, its channel and its network: unprotected, primary, backup.
