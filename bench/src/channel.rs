//! The logging channel.
