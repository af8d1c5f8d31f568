//! The log ring beside other rings.
